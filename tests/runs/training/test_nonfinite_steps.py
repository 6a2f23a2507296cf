import math

import pytest
import torch
from torch import nn

from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.loop import Loop
from prunekit.runs.training.nonfinite_steps import NonfiniteSteps
from prunekit.testing.toy_task import ToyNetwork, ToyTask

BATCHES = [
    (torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(8) % 4) for seed in range(6)
]


class Network(ToyNetwork):
    def __init__(self):
        super().__init__()
        self.relu_a = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls = self.calls + 1  # a new tensor each time
        return super().forward(images)


def trained(batches, **settings):
    """Train on batches and return the losses, the model and the optimiser's state."""
    torch.manual_seed(0)
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    training = Training(decay="constant", **settings)
    hardware = Hardware.of("cpu", training)
    loop = Loop(ToyTask(), model, optimizer, hardware.scaler(), training, hardware)
    shares = iter([BatchShare(batch, 1.0) for batch in batches])
    losses = [float(loss) for loss in loop.steps(shares, [1.0] * (len(batches) // training.accumulate))]
    return losses, model.state_dict(), optimizer.state_dict()["state"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_has_no_effect(bad, accumulate):
    spoilt = [(images.clone(), labels) for images, labels in BATCHES]
    spoilt[3][0][0, 0, 0, 0] = bad
    step = 3 // accumulate
    spared = [batch for place, batch in enumerate(BATCHES) if place // accumulate != step]
    losses, weights, moments = trained(spoilt, skip_bad_steps=1, accumulate=accumulate)
    expected_losses, expected_weights, expected_moments = trained(spared, accumulate=accumulate)
    assert math.isnan(losses.pop(step))
    assert losses == expected_losses
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
    for index, entry in expected_moments.items():
        assert all(torch.equal(moments[index][name], value) for name, value in entry.items())


def test_finite_steps_are_unchanged():
    plain, careful = trained(BATCHES), trained(BATCHES, skip_bad_steps=3)
    assert plain[0] == careful[0]
    assert all(torch.equal(plain[1][name], tensor) for name, tensor in careful[1].items())


@pytest.mark.parametrize(
    ("loss", "gradient", "scaled", "bad"),
    [
        (1.0, 1.0, False, False),
        (math.nan, 1.0, False, True),
        (1.0, math.inf, False, True),
        (1.0, -math.nan, False, True),
        (1.0, math.inf, True, False),  # the scaler skips the step itself
        (-math.inf, 1.0, True, True),
    ],
)
def test_a_loss_or_a_gradient_makes_a_step_bad(loss, gradient, scaled, bad):
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(1))]
    for parameter in parameters[:2]:
        parameter.grad = torch.full_like(parameter, gradient)
    assert NonfiniteSteps.is_bad([torch.tensor(loss)], parameters, scaled=scaled) is bad
