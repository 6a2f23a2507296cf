"""From which density on a layer gains by running sparse, found by measuring it at several.

The layer's own dense form is timed against its sparse ones, with as many weights left, at random places, as the density
says. This module must not know networks.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunekit.deployment.sparse.conversion import run_sparse
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.masks import Masks

LEAST = 1 / 256
"""Below that nobody prunes."""

_STEPS = 5  # of halving between LEAST and 1 on a logarithmic scale: the last two are a fifth apart


def crossover(ratio: Callable[[float], float], steps: int = _STEPS) -> float | None:
    """Return about the greatest density at which a ratio is below 1; ``None``: not even at ``LEAST``.

    Args:
        ratio: density -> sparse time / dense time, which grows with the density.
        steps: measurements, beside the one at ``LEAST``.
    """
    if ratio(LEAST) >= 1:
        return None
    low, high = math.log2(LEAST), 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(math.exp2(middle)) < 1 else (low, middle)
    return math.exp2(low)


def layer_crossover(layer: nn.Module, inputs: Tensor, view_of: ViewOf) -> float | None:
    """Measure from which density on a layer gains on this machine; ``None``: from none that was tried.

    Args:
        layer: with one weight, on the CPU; it is not changed.
        inputs: that it is called with, the batch first.
        view_of: gives its view.
    """
    layer = copy.deepcopy(layer)
    view = view_of(layer)
    assert isinstance(view, LayerView)
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(view.weight.shape, generator=generator)
    values = torch.randn(view.weight.shape, generator=generator)

    def ratio(density: float) -> float:
        view.weight.data.copy_(values)
        masks = Masks({view.parameter: places < density})
        _, (report,) = run_sparse(layer, masks, inputs, batch_sizes=(len(inputs),), view_of=view_of)
        return min((min(timing.ratios.values()) for timing in report.timings), default=math.inf)

    return crossover(ratio)
