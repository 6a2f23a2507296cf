import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit import Masks
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.contracts.training import Training
from prunekit.criteria.movement import Movement
from prunekit.errors import DataError
from prunekit.layers.lookup import find_layers
from prunekit.pruning.training_traces import no_traces, tracing
from prunekit.runs.training.batches import RankBatches
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.loop import Loop, epoch_steps, rate_factor
from prunekit.runs.training.optimizers import fuse
from prunekit.runs.training.showing import BatchShower


class Numbers(Task):
    """Least squares on four batches of numbers."""

    name = "numbers"

    def build_model(self):
        return nn.Linear(3, 2)

    def batches(self, split, epoch, seeds):
        generator = seeds.generator(split, epoch)
        return [(torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(4)]

    def loss(self, model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def evaluate(self, model, device):
        return Evaluation("x", {"x": 0.0})


def make_loop(settings=None, model=None):
    settings = settings or Training()
    torch.manual_seed(0)
    model = model or nn.Linear(3, 2)
    hardware = Hardware.of("cpu", settings)
    return Loop(Numbers(), model, Numbers().optimizer(model), hardware.scaler(), settings, hardware)


def shares_of(batches):
    return iter(RankBatches(Numbers(), batches))


def test_the_rate_warms_up_then_falls_to_zero():
    settings = Training(warmup=0.1)
    factors = [rate_factor(settings, step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_linear_decay_falls_linearly_and_constant_decay_does_not_fall():
    assert rate_factor(Training(decay="linear"), 25, 100) == 0.75
    assert rate_factor(Training(decay="constant"), 99, 100) == 1.0


def test_an_epoch_with_too_few_batches_is_refused():
    assert epoch_steps(7, 3) == 2
    with pytest.raises(DataError, match="2 training batches"):
        epoch_steps(2, 3)


def test_the_loop_takes_the_steps_of_a_plain_loop():
    loop = make_loop()
    batches = Numbers().batches("train", 0, Seeds(1))
    losses = torch.stack(list(loop.steps(shares_of(batches), [1.0, 0.5, 0.25, 0.0])))
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = Numbers().optimizer(model)
    for index, factor in enumerate([1.0, 0.5, 0.25, 0.0]):
        optimizer.param_groups[0]["lr"] = 0.5 * factor
        optimizer.zero_grad()
        loss = F.mse_loss(model(batches[index][0]), batches[index][1])
        loss.backward()
        optimizer.step()
        assert loss == losses[index]
    assert torch.equal(model.weight, loop.model.weight)


def test_accumulated_batches_make_the_step_of_one_large_batch():
    loop = make_loop(Training(accumulate=2))
    batches = Numbers().batches("train", 0, Seeds(1))
    list(loop.steps(shares_of(batches), [1.0, 1.0]))
    large = make_loop()
    joined = [tuple(torch.cat(pair) for pair in zip(*batches[index : index + 2], strict=True)) for index in (0, 2)]
    list(large.steps(shares_of(joined), [1.0, 1.0]))
    torch.testing.assert_close(loop.model.weight, large.model.weight)


def test_clipping_bounds_the_whole_gradient():
    loop = make_loop(Training(clip_norm=0.001))
    before = loop.model.weight.detach().clone()
    list(loop.steps(shares_of(Numbers().batches("train", 0, Seeds(1))), [1.0]))
    moved = torch.cat([(loop.model.weight - before).flatten()]).norm()
    assert 0 < moved <= 0.5 * 0.001 * 1.0001


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_close_to_fp32(precision):
    low, full = make_loop(Training(precision=precision)), make_loop()
    batches = Numbers().batches("train", 0, Seeds(1))
    first = torch.stack(list(low.steps(shares_of(batches), [0.1] * 4)))
    second = torch.stack(list(full.steps(shares_of(batches), [0.1] * 4)))
    assert low.model.weight.dtype == torch.float32
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, second, rtol=0.05, atol=0.05)


def test_shown_gradients_are_those_of_the_loss_and_are_removed_afterwards():
    model = nn.Linear(3, 2)
    shower = BatchShower(Numbers(), model, Hardware.of("cpu", Training()), Seeds(1), limit=2)
    batches = Numbers().batches("train", 0, Seeds(1))
    seen = [model.weight.grad.clone() for _ in shower.gradients()]
    assert len(seen) == 2
    for gradient, batch in zip(seen, batches, strict=False):
        expected = torch.autograd.grad(F.mse_loss(model(batch[0]), batch[1]), model.weight)[0]
        assert torch.equal(gradient, expected)
    assert model.weight.grad is None


def test_showing_activations_runs_every_batch_in_evaluation_mode():
    modes = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda module, _inputs, _outputs: modes.append(module.training))
    shower = BatchShower(Numbers(), model, Hardware.of("cpu", Training()), Seeds(1), limit=0)
    assert sum(1 for _ in shower.activations()) == 4
    assert modes == [False] * 4


def test_a_whole_network_runs_on_calibration_batches_and_gives_losses_with_their_graphs():
    model = nn.Linear(3, 2)
    shower = BatchShower(Numbers(), model, Hardware.of("cpu", Training()), Seeds(1), limit=2)
    whole = shower.evidence(model).network
    batches = Numbers().batches("train", 0, Seeds(1))
    for loss, batch in zip(whole.losses(), batches, strict=False):
        assert not model.training
        gradient = torch.autograd.grad(loss, model.weight)[0]
        assert torch.equal(gradient, torch.autograd.grad(F.mse_loss(model(batch[0]), batch[1]), model.weight)[0])
    model.train()
    calibration = Numbers().batches("calibration", 0, Seeds(1))
    for batch, expected in zip(whole.batches(), calibration, strict=False):
        assert torch.equal(whole.forward(batch), model(expected[0]))
        assert not model.training
    assert sum(1 for _ in whole.losses()) == sum(1 for _ in whole.batches()) == 2
    assert model.weight.grad is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of the compiler
def test_a_compiled_model_takes_the_same_steps():
    settings = Training(compile=True)
    plain = make_loop()
    compiled = attrs.evolve(make_loop(settings), model=Hardware.of("cpu", settings).callable(nn.Linear(3, 2)))
    compiled.model.load_state_dict({f"_orig_mod.{key}": value for key, value in plain.model.state_dict().items()})
    compiled = attrs.evolve(compiled, optimizer=Numbers().optimizer(compiled.model))
    batches = Numbers().batches("train", 0, Seeds(1))
    first, second = (torch.stack(list(loop.steps(shares_of(batches), [1.0] * 4))) for loop in (plain, compiled))
    torch.testing.assert_close(first, second)


class Images(Numbers):
    """Classes of images: convolution, normalisation, a linear layer."""

    def build_model(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def batches(self, split, epoch, seeds):
        return [(torch.randn(2, 3, 6, 6), torch.randint(5, (2,))) for _ in range(6)]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_no_step_waits_for_the_device(make):
    # The device "meta" has no values, so waiting for one fails.
    settings = Training(clip_norm=1.0, accumulate=2)
    model = Images().build_model().to("meta")
    hardware = attrs.evolve(Hardware.of("cpu", settings), device=torch.device("meta"))
    optimizer = make(model.parameters(), lr=0.1)
    loop = Loop(Images(), model, optimizer, hardware.scaler(), settings, hardware)
    masks = {name: torch.rand(model.get_parameter(name).shape) < 0.5 for name in ("0.weight", "4.weight")}
    views = find_layers(model)
    sums = no_traces({"0": views["0"]})
    with Masks(masks).hold(model, optimizer), tracing(Movement(), views, sums, optimizer):
        losses = list(loop.steps(iter(RankBatches(Images(), Images().batches("train", 0, None))), [1.0] * 3))
    assert len(losses) == 3
    with pytest.raises(RuntimeError, match="meta"):
        losses[0].item()


class Steep(Numbers):
    """Least squares, flat except for the first batch, whose gradient overflows fp16."""

    def __init__(self, *, first=1.0):
        self._factors = [0.01, 0.01, 0.01, first]

    def loss(self, model, batch):
        return super().loss(model, batch) * self._factors.pop()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_changes_only_the_scale(fused):
    settings = Training(precision="fp16", fused=fused, clip_norm=1.0)
    loop = make_loop(settings)
    if fused:
        fuse(loop.optimizer)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    sums = no_traces(find_layers(loop.model))
    batches = Numbers().batches("train", 0, Seeds(1))
    loop = attrs.evolve(loop, task=Steep(first=1e6))
    with (
        Masks({"weight": mask}).hold(loop.model, loop.optimizer),
        tracing(Movement(), find_layers(loop.model), sums, loop.optimizer),
    ):
        before = loop.model.weight.detach().clone()
        scale = loop.scaler.get_scale()
        taken = loop.steps(shares_of(batches), [1.0] * 4)
        next(taken)
        assert torch.equal(loop.model.weight, before)
        assert not sums[""].any()
        assert loop.scaler.get_scale() == scale / 2
        for _ in taken:
            assert torch.equal(loop.model.weight != 0, mask)
    assert sums[""].any()
    assert loop.scaler.get_scale() == scale / 2
    # The first step has no effect, and the overflow does not enter the momentum.
    plain = attrs.evolve(make_loop(Training(clip_norm=1.0)), task=Steep(first=0.01))
    with Masks({"weight": mask}).hold(plain.model, plain.optimizer):
        list(plain.steps(shares_of(batches[1:]), [1.0] * 3))
    torch.testing.assert_close(loop.model.weight, plain.model.weight, rtol=0.01, atol=1e-4)
    assert (loop.model.weight - before).abs().max() > 1e-3
