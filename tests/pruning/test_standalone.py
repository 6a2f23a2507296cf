from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunekit
from prunekit.errors import ConfigError
from prunekit.masks.selection import NofM
from prunekit.testing import ToyNetwork, ToyTask


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ToyNetwork().train()


BATCHES = list(ToyTask().batches("train", 0, prunekit.Seeds(0)))


def test_one_density_masks_every_layer_and_does_not_change_the_model(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks = prunekit.select(network, density=0.25)
    assert {name: float(density) for name, density in masks.densities().items()} == {
        "conv_a.weight": 0.25,
        "conv_b.weight": 0.25,
        "hidden.weight": 0.25,
        "classifier.weight": 0.25,
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training


def test_layers_can_be_named_by_globs_and_other_layers_get_no_mask(network):
    masks = prunekit.select(network, "random", density={"conv*": 0.5, "hidden": 1 / 8}, seed=3)
    assert masks.densities() == {"conv_a.weight": 0.5, "conv_b.weight": 0.5, "hidden.weight": 0.125}
    assert masks == prunekit.select(network, "random", density={"conv*": 0.5, "hidden": 1 / 8}, seed=3)
    assert masks != prunekit.select(network, "random", density={"conv*": 0.5, "hidden": 1 / 8}, seed=4)


def test_a_criterion_that_observes_takes_batches(network):
    masks = prunekit.select(network, "correlation", density={"hidden": 0.25}, batches=BATCHES)
    assert masks.tensors["hidden.weight"].sum(1).tolist() == [18] * 16
    with pytest.raises(ConfigError, match="criterion 'correlation' needs activations: give it batches to observe"):
        prunekit.select(network, "correlation", density=0.5)


@pytest.mark.parametrize("density", [Fraction(1, 4), Decimal("0.25"), torch.tensor(0.25), np.float64(0.25), 1])
def test_a_density_may_be_any_kind_of_number(network, density):
    expected = {key: float(density) for key in ("conv_a.weight", "conv_b.weight", "hidden.weight", "classifier.weight")}
    assert prunekit.select(network, density=density).densities() == expected
    assert prunekit.select(network, density={"hidden": density}).densities() == {"hidden.weight": float(density)}


class Gradient(prunekit.Criterion):
    name = "gradient"
    needs = frozenset({"gradients"})

    def observe(self, seen):
        self.total = seen.weight_gradient.abs()

    def score(self, weight, generator):
        return self.total


def test_a_criterion_made_by_a_callable_sees_gradients_of_the_loss(network):
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    masks = prunekit.select(network, Gradient, density={"hidden": 0.5}, batches=BATCHES[:1], loss=loss)
    expected = torch.autograd.grad(loss(network, BATCHES[0]), network.hidden.weight)[0].abs().flatten()
    kept = masks.tensors["hidden.weight"].flatten()
    assert expected[kept].min() >= expected[~kept].max()
    assert network.hidden.weight.grad is None


@pytest.mark.parametrize("criterion", [Gradient, "correlation"])
def test_existing_gradients_are_not_changed(network, criterion):
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    fresh = prunekit.select(network, criterion, density={"hidden": 0.5}, batches=BATCHES[:2], loss=loss)
    (3 * loss(network, BATCHES[2])).backward()
    before = {name: (parameter.grad, parameter.grad.clone()) for name, parameter in network.named_parameters()}
    assert prunekit.select(network, criterion, density={"hidden": 0.5}, batches=BATCHES[:2], loss=loss) == fresh
    for name, parameter in network.named_parameters():
        assert parameter.grad is before[name][0]
        assert torch.equal(parameter.grad, before[name][1])


def test_a_pattern_and_a_global_scope_are_met(network):
    masks = prunekit.select(network, density={"hidden": 0.5}, pattern=NofM(2, 4))
    assert masks.tensors["hidden.weight"].reshape(-1, 4).sum(1).tolist() == [2] * 288
    assert prunekit.select(network, density=0.1, scope="global").density() == pytest.approx(0.1, abs=0.001)


def test_a_pattern_can_be_text_and_n_of_m_implies_its_density(network):
    rest = ["conv_a"]
    assert prunekit.select(network, pattern="2:4", keep_dense=rest) == prunekit.select(
        network, density={"conv_b": 0.5, "hidden": 0.5, "classifier": 0.5}, pattern=NofM(2, 4)
    )
    masks = prunekit.select(network, density=0.5, pattern="units")
    assert set(masks.tensors["hidden.weight"].sum(1).tolist()) == {0, 72}


def test_a_distribution_meets_one_density_exactly_with_layers_kept_dense(network):
    masks = prunekit.select(network, density=0.2, distribution="erdos-renyi-kernel", keep_dense=["first"])
    total = sum(module.weight.numel() for module in network.modules() if hasattr(module, "weight"))
    assert "conv_a.weight" not in masks.tensors
    assert sum(int(mask.sum()) for mask in masks.tensors.values()) + network.conv_a.weight.numel() == round(0.2 * total)


def test_dropped_weights_remain_zero_in_a_plain_loop(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    masks = prunekit.select(network, density=0.2)
    with masks.hold(network, optimizer):
        for images, labels in BATCHES:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            assert prunekit.Masks.from_zeros(network) == masks


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (nn.ReLU(), {"density": 0.5}, "ReLU has no prunable layer"),
        (nn.Linear(2, 2), {"density": "much"}, "density of '\\*' is 'much', expected a number"),
        (nn.Linear(2, 2), {"density": torch.ones(2)}, "expected a number"),
        (nn.Linear(2, 2), {"density": {}}, "the structure is empty, expected for example"),
        (nn.Linear(2, 2), {}, "no density is given"),
        (nn.Linear(4, 2), {"density": 0.5, "keep_dense": ["first"]}, "keep_dense excludes all layers"),
        (
            nn.Linear(4, 2),
            {"density": {"*": 0.5}, "keep_dense": ["first"]},
            "structure '\\*=0.5' gives each layer its own",
        ),
        (nn.Linear(4, 2), {"density": 0.5, "distribution": "erk"}, "expected one of uniform, erdos-renyi"),
        (nn.Linear(4, 2), {"pattern": "2:4", "distribution": "uniform"}, "nothing to distribute"),
        (nn.Linear(4, 2), {"density": 0.5, "pattern": "2-4"}, "is not understood"),
        (nn.Linear(2, 2), {"density": 50}, "for 50 percent write 0.5"),
        (nn.Sequential(nn.Linear(2, 2)), {"density": {"1": 0.5}}, "'1'"),
        (nn.Linear(2, 2), {"density": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
    ],
)
def test_an_impossible_request_is_an_error_in_one_line(model, arguments, words):
    with pytest.raises(ConfigError, match=words):
        prunekit.select(model, **arguments)
