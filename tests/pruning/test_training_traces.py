import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.task import Task
from prunekit.contracts.training import Training
from prunekit.layers.torch_views import core_view
from prunekit.pruning.training_traces import no_traces, tracing
from prunekit.runs.training.batches import RankBatches
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.loop import Loop


@attrs.frozen
class Gradients(Criterion):
    """Sums the gradients themselves."""

    name = "gradients"
    needs = frozenset({"training"})

    def trace(self, weight, gradient):
        return gradient

    def score(self, weight, generator):
        raise NotImplementedError


class Numbers(Task):
    """Least squares on given batches."""

    name = "numbers"

    def build_model(self):
        return nn.Linear(3, 2)

    def batches(self, split, epoch, seeds):
        generator = torch.Generator().manual_seed(5)
        return [(torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)) for _ in range(6)]

    def loss(self, model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def evaluate(self, model, device):
        return Evaluation("x", {"x": 0.0})


def traced(settings, optimizer=None, batches=None):
    """Take all steps of an epoch; return the sum, the first weight and the last one."""
    task = Numbers()
    torch.manual_seed(0)
    model = task.build_model()
    first = model.weight.detach().clone()
    hardware = Hardware.of("cpu", settings)
    optimizer = optimizer(model) if optimizer else task.optimizer(model)
    loop = Loop(task, model, optimizer, hardware.scaler(), settings, hardware)
    layers = {"layer": core_view(model)}
    sums = no_traces(layers)
    batches = batches or task.batches("train", 0, None)
    steps = len(batches) // settings.accumulate
    with tracing(Gradients(), layers, sums, optimizer):
        list(loop.steps(iter(RankBatches(task, batches)), [1.0] * steps))
    return sums["layer"], first, model.weight.detach()


@pytest.mark.parametrize(
    "settings",
    [
        Training(),
        Training(accumulate=3),
        Training(clip_norm=0.3),
        Training(precision="fp16"),
        Training(precision="fp16", clip_norm=0.3),
        Training(precision="bf16"),
    ],
)
def test_gradients_are_summed_as_the_optimiser_sees_them(settings) -> None:
    # Plain descent moves a weight by rate times gradient, whatever was accumulated, clipped or scaled on the way.
    total, first, last = traced(settings)
    assert (total.shape, total.dtype) == ((2, 3), torch.float32)
    torch.testing.assert_close(total, (first - last) / 0.1)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_adds_nothing(fused) -> None:
    batches = Numbers().batches("train", 0, None)
    batches[2] = (batches[2][0], batches[2][1] * torch.inf)
    adam = lambda model: torch.optim.Adam(model.parameters(), lr=0.0, fused=fused)  # noqa: E731 - two words
    total, first, last = traced(Training(precision="fp16"), adam, batches)
    assert torch.equal(first, last)
    expected, _, _ = traced(Training(precision="fp16"), adam, [*batches[:2], *batches[3:]])
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)
    assert total.isfinite().all()


def test_nothing_is_summed_after_the_context_ends() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = {"layer": core_view(model)}
    sums = no_traces(layers)
    with tracing(Gradients(), layers, sums, optimizer):
        pass
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not sums["layer"].any()


def test_a_layer_that_no_gradient_reaches_adds_nothing() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = {"layer": core_view(model)}
    sums = no_traces(layers)
    with tracing(Gradients(), layers, sums, optimizer):
        optimizer.step()
    assert not sums["layer"].any()
