"""Whether a network in another form gives the outputs that it gave, but for rounding.

This module must not know networks or forms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 8
"""Units in the last place of the greatest number: in half precision that is more than the tolerance of any form."""


def compare(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> tuple[float, str]:
    """Return the greatest absolute difference of outputs, and in words what is wrong with them, or "".

    Args:
        expected: output tensors.
        found: those that are to be the same.
        tolerance: greatest difference; of the greatest number of its tensor, where that is above 1. Where 8 units in
            the last place are more, these.
    """
    shapes, others = ([list(tensor.shape) for tensor in tensors] for tensors in (expected, found))
    if shapes != others:
        return math.inf, f"its outputs have the shapes {_told(others)} instead of {_told(shapes)}"
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        error, scale = difference(one, other)
        rounding = torch.finfo(one.dtype).eps if one.is_floating_point() or one.is_complex() else 0.0
        allowed = max(tolerance, ROUNDING * rounding) * max(1.0, scale)
        if error > allowed:
            return error, f"an output is off by {error:.3g}, more than {allowed:.3g} (the greatest is {scale:.3g})"
        worst = max(worst, error)
    return worst, ""


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the greatest absolute difference of two tensors of one shape, and the first one's greatest finite value.

    Infinities and NaNs differ from everything but themselves, and then by infinity.
    """
    exact = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    first, second = one.to(exact), other.to(exact)
    same = (first == second) | (first.isnan() & second.isnan())
    apart = torch.where(same, 0.0, (first - second).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    finite = first.abs()[first.isfinite()]
    return _greatest(apart), _greatest(finite)


def _greatest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _told(shapes: Sequence[list[int]]) -> str:
    return ", ".join(map(str, shapes)) or "none"
