"""Sample inputs: of a task, and random ones of a given shape."""

import attrs
import pytest
import torch
from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.deployment.pruned_network import random_samples
from prunekit.errors import ConfigError
from prunekit.layers.samples import MOST, Samples
from prunekit.runs.preparing.task_samples import task_samples
from prunekit.testing import ToyTask


class Doubling(nn.Module):
    """Returns two outputs in a dict, and a value that is not a tensor."""

    def forward(self, values, *, scale):
        return {"double": 2 * values * scale, "same": values, "name": "x"}


def test_random_samples_are_the_same_every_time_and_have_the_requested_shapes():
    images, tokens = random_samples(["3x5x4", "7:2..9"], torch.float32).arguments
    assert images.shape == (MOST, 3, 5, 4)
    assert images.dtype == torch.float32
    assert 0.9 < float(images.std()) < 1.1
    assert tokens.shape == (MOST, 7)
    assert tokens.dtype == torch.int64
    assert set(tokens.unique().tolist()) == set(range(2, 10))
    again = random_samples(["3x5x4", "7:2..9"], torch.float32).arguments
    assert torch.equal(images, again[0])
    assert torch.equal(tokens, again[1])


def test_two_arguments_of_the_same_shape_hold_different_numbers():
    first, second = random_samples(["4", "4"], torch.float64).arguments
    assert not torch.equal(first, second)
    assert first.dtype == torch.float64


@pytest.mark.parametrize("text", ["", "3x", "x3", "0x3", "3,4", "-1", "3x4:1", "4:9..2", "٣", "3 x 4"])
def test_a_malformed_shape_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"--input is .*expected sizes such as 3x55x47"):
        random_samples([text], torch.float32)


def test_samples_are_cut_to_the_count_or_repeated_from_the_first():
    samples = Samples((torch.arange(3), torch.arange(5)), {"scale": torch.tensor([1, 10, 100]), "mode": "x"})
    assert samples.count == 3
    fewer, more = samples.take(2), samples.take(7)
    assert fewer.arguments[0].tolist() == [0, 1]
    assert more.arguments[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert more.keywords["scale"].tolist() == [1, 10, 100, 1, 10, 100, 1]
    assert more.arguments[1].tolist() == [0, 1, 2, 3, 4]  # not one for each sample
    assert more.keywords["mode"] == "x"
    assert more.count == 7


def test_a_call_without_a_batch_is_refused():
    for arguments in ((), (3,), (torch.tensor(1.0),), (torch.empty(0, 3),)):
        with pytest.raises(ConfigError, match="needs a batch of tensors, but got none"):
            Samples(arguments)


def test_samples_are_made_from_one_argument_a_tuple_or_a_mapping():
    values = torch.ones(2, 3)
    assert Samples.of(values).arguments == (values,)
    assert Samples.of((values, 3)).arguments == (values, 3)
    named = Samples.of({"values": values, "scale": 3.0})
    assert (named.arguments, named.count) == ((), 2)
    assert named.through(Doubling())[0].tolist() == [[6.0] * 3] * 2
    assert Samples.of(named) is named


def test_a_network_that_changes_its_arguments_in_place_changes_copies():
    samples = Samples((torch.ones(2, 3),))
    for _ in range(2):
        assert samples.through(lambda values: values.mul_(2))[0].tolist() == [[2.0] * 3] * 2


def test_every_output_tensor_is_returned_without_gradients():
    values = torch.ones(2, 3, requires_grad=True)
    double, same = Samples((values,), {"scale": 3.0}).through(Doubling())
    assert double.tolist() == [[6.0] * 3] * 2
    assert not double.requires_grad
    assert same.shape == (2, 3)


@attrs.frozen
class Wrapped(ToyTask):
    """The toy task with a head around the deployed network, which it calls by keyword."""

    name = "wrapped"

    def build_model(self):
        model = nn.Module()
        model.network = super().build_model()
        return model

    def deployed(self, model):
        return model.network

    def forward(self, model, batch):
        return model.network(images=batch[0][:20] * 2)


def test_samples_of_a_task_are_the_arguments_its_forward_passes_to_the_deployed_network():
    task = Wrapped()
    model = task.build_model().eval()
    samples = task_samples(task, model, Seeds(3))
    batch = task.batches("calibration", 0, Seeds(3))[0]
    assert samples.arguments == ()
    assert torch.equal(samples.keywords["images"], batch[0][:20] * 2)
    assert not model.network._forward_pre_hooks


@attrs.frozen
class Strange(Wrapped):
    """Bypasses the deployed network's forward."""

    name = "strange"

    def forward(self, model, batch):
        return model.network.conv_a(batch[0])


def test_a_task_that_never_calls_its_network_is_refused_with_the_next_step():
    task = Strange()
    with pytest.raises(ConfigError, match=r"deployed network of task 'strange' are unknown.*--input"):
        task_samples(task, task.build_model(), Seeds(0))
