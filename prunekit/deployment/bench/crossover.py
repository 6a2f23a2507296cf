"""Find the density below which a layer runs faster sparse, by measuring it at several densities.

The dense form of the layer is timed against its sparse forms, with weights kept at random positions. This module must
not know networks.
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
"""Lowest density measured."""

_STEPS = 5  # bisections between LEAST and 1 on a logarithmic scale; the last two densities differ by a fifth


def crossover(ratio: Callable[[float], float], steps: int = _STEPS) -> float | None:
    """Return approximately the highest density at which a ratio is below 1; ``None`` if it is not at ``LEAST``.

    Args:
        ratio: density -> sparse time / dense time, increasing with the density.
        steps: number of measurements besides the one at ``LEAST``.
    """
    if ratio(LEAST) >= 1:
        return None
    low, high = math.log2(LEAST), 0.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(math.exp2(middle)) < 1 else (low, middle)
    return math.exp2(low)


def layer_crossover(layer: nn.Module, inputs: Tensor, view_of: ViewOf) -> float | None:
    """Measure the density below which a layer runs faster sparse on this machine; ``None``: at no measured density.

    Args:
        layer: a layer with one weight, on the CPU; it is not changed.
        inputs: inputs of the layer, the batch first.
        view_of: returns the view of the layer.
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
