"""Compare the outputs of a network in two forms, up to rounding.

This module must not know networks or forms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 8
"""Allowed units in the last place of the largest value; in half precision this exceeds the tolerance of any format."""


def compare(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> tuple[float, str]:
    """Return the largest absolute difference of two sets of outputs, and the problem in words, "" if none.

    Args:
        expected: output tensors of the reference.
        found: output tensors to check, in the same order.
        tolerance: largest difference allowed, relative to the largest value of its tensor if that is above 1; at
            least 8 units in the last place are allowed.
    """
    shapes, others = ([list(tensor.shape) for tensor in tensors] for tensors in (expected, found))
    if shapes != others:
        return math.inf, f"the outputs have the shapes {_in_words(others)}, expected {_in_words(shapes)}"
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        error, scale = difference(one, other)
        rounding = torch.finfo(one.dtype).eps if one.is_floating_point() or one.is_complex() else 0.0
        allowed = max(tolerance, ROUNDING * rounding) * max(1.0, scale)
        if error > allowed:
            return error, f"an output is off by {error:.3g}, more than {allowed:.3g} (largest value: {scale:.3g})"
        worst = max(worst, error)
    return worst, ""


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest absolute difference of two tensors of one shape, and the largest finite value of the first.

    An infinity or NaN equals only itself; its difference from anything else is infinite.
    """
    exact = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    first, second = one.to(exact), other.to(exact)
    same = (first == second) | (first.isnan() & second.isnan())
    apart = torch.where(same, 0.0, (first - second).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    finite = first.abs()[first.isfinite()]
    return _greatest(apart), _greatest(finite)


def _greatest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _in_words(shapes: Sequence[list[int]]) -> str:
    return ", ".join(map(str, shapes)) or "none"
