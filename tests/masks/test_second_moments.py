import pytest
import torch
from torch import nn

from prunekit.masks import holding
from prunekit.masks.masks import Masks
from prunekit.masks.second_moments import lift, second_moments

OPTIMIZERS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"betas": (0.9, 0.5), "amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.RMSprop, {"alpha": 0.7, "centered": True, "momentum": 0.9}),
    (torch.optim.Adagrad, {}),
]
MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.3


def trained(kind, options, steps=120):
    """Train a small layer under a mask: the layer, the optimiser, what holds the mask."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    optimizer = kind(layer.parameters(), lr=0.01, **options)
    held = Masks({"weight": MASK}).hold(layer, optimizer).attach()
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    return layer, optimizer, held


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_dropped_second_moments_are_never_small_and_no_weight_changes(kind, options, monkeypatch):
    layer, optimizer, _ = trained(kind, options)
    assert (second_moments(optimizer, layer.weight)[~MASK] > 1e-31).all()
    monkeypatch.setattr(holding, "lift", lambda *_: 2**62)
    plain, plain_optimizer, _ = trained(kind, options)
    assert not second_moments(plain_optimizer, plain.weight)[~MASK].any()
    assert torch.equal(layer.weight, plain.weight)
    assert not layer.weight[~MASK].any()
    assert torch.equal(
        second_moments(optimizer, layer.weight)[MASK], second_moments(plain_optimizer, plain.weight)[MASK]
    )


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_released_and_regrown_weights_start_from_zero_state(kind, options):
    layer, optimizer, held = trained(kind, options, steps=3)
    held.update(Masks({"weight": torch.ones_like(MASK)}))
    assert not second_moments(optimizer, layer.weight)[~MASK].any()
    layer, optimizer, held = trained(kind, options, steps=3)
    held.detach()
    assert not second_moments(optimizer, layer.weight)[~MASK].any()


def test_the_time_to_the_next_lift_follows_the_decay():
    def steps(kind, **options):
        layer = nn.Linear(2, 2)
        optimizer = kind(layer.parameters(), **options)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return lift(optimizer, layer.weight, torch.zeros(2, 2, dtype=torch.bool))

    assert 60_000 < steps(torch.optim.AdamW, betas=(0.9, 0.999)) < 70_000
    assert steps(torch.optim.Adam, betas=(0.9, 0.0)) == 1
    assert steps(torch.optim.RMSprop, alpha=0.9) == 655
    assert steps(torch.optim.Adagrad) == 2**62


@pytest.mark.parametrize(("kind", "calls"), [(torch.optim.SGD, 1), (torch.optim.Adam, 1), (torch.optim.RMSprop, 2)])
def test_moments_are_lifted_when_due_and_not_at_every_step(kind, calls, monkeypatch):
    asked = []

    def counted(*given):
        asked.append(lift(*given))
        return asked[-1]

    monkeypatch.setattr(holding, "lift", counted)
    trained(kind, {"alpha": 0.5} if kind is torch.optim.RMSprop else {})  # after 99 steps again
    assert len(asked) == calls


def test_moments_that_do_not_exist_yet_are_looked_up_again():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.Adam(model.parameters())
    with Masks({"0.weight": MASK, "1.weight": MASK}).hold(model, optimizer):
        for late in (0, 1):  # the second layer has no gradient at first
            optimizer.zero_grad()
            (model if late else model[0])(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        assert (second_moments(optimizer, model[1].weight)[~MASK] == 1).all()


def test_other_optimisers_and_dtypes_are_ignored():
    class Own(torch.optim.Adam):
        """Who knows what it does with its state."""

    layer = nn.Linear(2, 2)
    assert lift(torch.optim.Adam(layer.parameters()), layer.weight, torch.zeros(2, 2, dtype=torch.bool)) == 0
    for kind, dtype in ((Own, torch.float32), (torch.optim.SGD, torch.float32), (torch.optim.Adam, torch.bfloat16)):
        layer = nn.Linear(2, 2, dtype=dtype)
        optimizer = kind(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 2, dtype=dtype)).sum().backward()
        optimizer.step()
        assert second_moments(optimizer, layer.weight) is None
