"""From which density on a layer gains by running sparse, found by measuring it at several.

The layer's own dense form is timed against its sparse ones, with as many weights left, at random places, as the density
says. This module must not know networks.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunekit.layers import LayerView, ViewOf
from prunekit.sparse.choosing import measure
from prunekit.sparse.layers import DENSE, make_product, why_dense

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
        layer: on the CPU, in evaluation mode; it is not changed.
        inputs: that it is called with, the batch first.
        view_of: gives its view.
    """
    layer = copy.deepcopy(layer)
    view = view_of(layer)
    assert isinstance(view, LayerView)
    if why_dense(view, tuple(inputs.shape[1:]), inputs.dtype):
        return None
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(view.weight.shape, generator=generator)
    values = torch.randn(view.weight.shape, generator=generator).to(view.weight.dtype)

    def ratio(density: float) -> float:
        with torch.no_grad():
            view.weight.copy_(values * (places < density))
            product = make_product(view, tuple(inputs.shape[1:])).eval()
            calls = {form: lambda form=form: product(inputs, form) for form in product.forms}
            timing = measure({DENSE: lambda: layer(inputs), **calls}, len(inputs), product.size(inputs))
        return min(timing.ratios.values())

    return crossover(ratio)
