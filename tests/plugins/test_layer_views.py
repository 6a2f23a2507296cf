"""Views and followers through the hook: the example of a third-party normalisation, without installing it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from prunekit.deployment.shrinking import shrink
from prunekit.plugins.manager import Source, make_manager, view_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "third-party-normalization"


@pytest.fixture
def activation_norm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the module of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("activation_norm")
    sys.modules.pop("activation_norm", None)


def test_channels_of_a_third_party_normalisation_are_removed_only_with_its_plugin(activation_norm: ModuleType) -> None:
    torch.manual_seed(0)
    norm = activation_norm.ActivationNorm(8)
    nn.init.normal_(norm.shift)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 2, 3)).double()
    nn.init.zeros_(network[0].weight[:4].detach())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    manager = make_manager(third_party=False)
    assert shrink(network, images, view_of=view_of(manager)).report.layers["0"].units == (8, 8)
    manager.add(activation_norm, Source("activation_norm", "prunekit-activation-norm"))
    shrunk = shrink(network, images, view_of=view_of(manager))
    assert shrunk.report.layers["0"].units == (8, 4)
    torch.testing.assert_close(shrunk.network(images), network(images), rtol=1e-12, atol=1e-12)
