"""Exact top-k selection from scores, with deterministic ties.

Scores are ``[G, out, fan]``, higher = keep. The number kept is always ``round(density * weights)``, or
``round(density * blocks)`` with blocks; per unit it differs by at most one between units. Of equal scores, the earlier
connection wins. This module must not know layers, criteria or names.
"""

import math
from collections.abc import Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from prunekit.errors import MaskError
from prunekit.masks.patterns import Blocks, Channels, NofM, Pattern, Units, kept_count, pattern_problem, requested_count
from prunekit.masks.top_k import as_array, first_best, kth_largest, mark_best

# Patterns and counts are exported here too, since selecting needs them.
__all__ = [
    "Blocks",
    "Channels",
    "NofM",
    "Pattern",
    "Quota",
    "Scope",
    "Units",
    "among",
    "keep_best",
    "keep_best_global",
    "kept_count",
    "pattern_problem",
    "requested_count",
    "top_counts",
    "unit_counts",
    "unit_shares",
]

Scope = Literal["unit", "layer", "global"]


_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_STEP, _GPU_STEP = 1 << 20, 1 << 24  # scores to process at once, so that intermediate tensors remain small
_FEW = 16  # up to here neighbours are compared pairwise; larger groups are partitioned


@attrs.frozen
class Quota:
    """How many connections of one layer to keep, and which connections compete.

    Attributes:
        density: kept / total, in (0, 1].
        fan_shape: the shape of one unit's connections, input channels first.
        scope: "unit": every output unit keeps the same share; "layer": all connections compete.
        pattern: N:M, blocks or whole units; ``None``: unstructured.
        candidates: bool ``[G, out, fan]``, the connections that may be kept; ``None``: all.
    """

    density: float
    fan_shape: tuple[int, ...]
    scope: Literal["unit", "layer"] = "layer"
    pattern: Pattern | None = None
    candidates: Tensor | None = None


def unit_counts(density: float, units: int, fan: int) -> Tensor:
    """Return how many connections each of ``units`` keeps: int64 ``[units]``.

    The counts add up to ``kept_count(density, units * fan)`` and differ by at most one; the larger ones are distributed
    evenly over the units. A higher density gives no unit less, so that a layer can be pruned gradually.

    >>> unit_counts(0.5, 3, 3).tolist()
    [2, 1, 2]
    """
    share, extra = divmod(kept_count(density, units * fan), units)
    # Multiples of the golden ratio are evenly distributed, and so are the first few of them in order of size.
    place = (torch.arange(units, dtype=torch.float64) * _GOLDEN_RATIO).frac().argsort().argsort()
    return share + (place < extra).to(torch.int64)


def unit_shares(quota: Quota, units: int, fan: int) -> Tensor:
    """Return how many connections each unit keeps under a quota: int64 ``[units]``.

    Like ``unit_counts``, but no unit keeps more than its candidates; other units keep the rest.

    Raises:
        MaskError: there are fewer candidates than connections to keep.
    """
    counts = unit_counts(quota.density, units, fan)
    if quota.candidates is None:
        return counts
    room = quota.candidates.reshape(units, fan).sum(1).cpu()
    if int(counts.sum()) > int(room.sum()):
        raise MaskError(
            f"density {quota.density:g} needs {int(counts.sum())} connections, "
            f"but only {int(room.sum())} are candidates; lower the density"
        )
    missing = int((counts - room).clamp(min=0).sum())
    counts = counts.minimum(room)
    while missing:
        spare = (room > counts).nonzero().squeeze(1)[:missing]
        counts[spare] += 1
        missing -= len(spare)
    return counts


def top_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts[u]`` largest entries of each row u; of equal scores, the earlier one.

    Args:
        scores: ``[units, fan]``; ``-inf`` is a score like any other.
        counts: int64 ``[units]``, 0 <= count <= fan.

    Returns:
        bool ``[units, fan]``, exactly ``counts[u]`` True in row u.
    """
    if len(scores) == 1:
        return mark_best([scores], int(counts))[0]
    mask = torch.zeros_like(scores, dtype=torch.bool)
    rows = _at_once(scores, scores.shape[1])
    for part, wanted, marks in zip(*(torch.split(whole, rows) for whole in (scores, counts, mask)), strict=True):
        for count in wanted.unique().tolist():
            if count:
                of = (wanted == count).nonzero().squeeze(1).to(scores.device)
                marks[of] = first_best(part[of], kth_largest(part[of], count).unsqueeze(1), count)
    return mask


def _at_once(scores: Tensor, size: int) -> int:
    """Return how many rows of ``size`` scores to process at once."""
    return max(1, (_STEP if scores.device.type == "cpu" else _GPU_STEP) // max(1, size))


def keep_best(scores: Tensor, quota: Quota) -> Tensor:
    """Return the mask of the connections of one layer with the highest scores.

    >>> keep_best(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]), Quota(density=0.5, fan_shape=(2,)))
    tensor([[[False,  True],
             [ True, False]]])

    Args:
        scores: floating-point ``[G, out, fan]``, higher = keep; without NaN.
        quota: how many connections to keep, and which of them compete.

    Returns:
        bool ``[G, out, fan]``, True = keep.

    Raises:
        MaskError: the pattern does not fit the layer or the density, or there are too few candidates.
    """
    problem = pattern_problem(quota.pattern, quota.density, scores.shape[1], quota.fan_shape)
    if isinstance(quota.pattern, Channels):
        problem = "channels belong to several layers, so a single layer cannot select them; use prunekit.select"
    if problem:
        raise MaskError(problem)
    scores = among(scores, quota.candidates)
    if isinstance(quota.pattern, NofM):
        mask = _keep_n_of_m(scores, quota.pattern, quota)
    elif isinstance(quota.pattern, Blocks | Units):
        mask = _keep_blocks(scores, _as_blocks(quota.pattern, scores), quota)
    else:
        mask = _keep_rows(scores, quota)
    if quota.candidates is not None and bool((mask & ~quota.candidates).any()):
        raise MaskError(
            f"density {quota.density:g} needs {int(mask.sum())} connections in this pattern, "
            f"but only {int((mask & quota.candidates).sum())} of them are candidates; lower the density"
        )
    return mask


def among(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Return scores that rank connections that are not candidates below all others, even those that score ``-inf``."""
    if candidates is None:
        return scores
    return scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(~candidates, -math.inf)


def _keep_rows(scores: Tensor, quota: Quota) -> Tensor:
    rows = scores.flatten(0, 1) if quota.scope == "unit" else scores.reshape(1, -1)
    return top_counts(rows, unit_shares(quota, *rows.shape)).reshape(scores.shape)


def _keep_n_of_m(scores: Tensor, pattern: NofM, quota: Quota) -> Tensor:
    # Consecutive input channels: [units, groups, m, kernel taps].
    n, m = pattern.n, pattern.m
    by_group = scores.reshape(-1, quota.fan_shape[0] // m, m, scores.shape[2] // quota.fan_shape[0])
    mask = torch.empty_like(by_group, dtype=torch.bool)
    rows = _at_once(scores, by_group[0].numel())
    for part, marks in zip(torch.split(by_group, rows), torch.split(mask, rows), strict=True):
        if m <= _FEW:
            # A contiguous copy has the scores of one place side by side.
            marks.copy_((_rank_of_few(part.movedim(2, 0).contiguous()) < n).movedim(0, 2))
        else:
            groups = part.transpose(2, 3)
            best = top_counts(groups.reshape(-1, m), torch.full((groups.numel() // m,), n))
            marks.copy_(best.reshape(groups.shape).transpose(2, 3))
    return mask.reshape(scores.shape)


def _rank_of_few(scores: Tensor) -> Tensor:
    """Return how many others beat each score along the first axis, earlier equal ones included: uint8."""
    beaten = torch.zeros_like(scores, dtype=torch.uint8)
    values, counts = as_array(scores), as_array(beaten)
    for later in range(1, len(values)):
        for earlier in range(later):
            wins = values[earlier] >= values[later]
            counts[later] += wins
            counts[earlier] += ~wins
    return beaten


def _keep_blocks(scores: Tensor, pattern: Blocks, quota: Quota) -> Tensor:
    cut = _cut(scores, pattern)
    whole = None if quota.candidates is None else quota.candidates.reshape(cut).all(4).all(2)
    mask = _keep_rows(among(_block_sums(scores.reshape(cut)), whole), attrs.evolve(quota, candidates=whole))
    return mask[:, :, None, :, None].expand(cut).reshape(scores.shape)


def _as_blocks(pattern: Blocks | Units, scores: Tensor) -> Blocks:
    return Blocks(1, scores.shape[2]) if isinstance(pattern, Units) else pattern


def _cut(scores: Tensor, pattern: Blocks) -> tuple[int, ...]:
    groups, out, fan = scores.shape
    return groups, out // pattern.rows, pattern.rows, fan // pattern.columns, pattern.columns


def _block_sums(tiles: Tensor) -> Tensor:
    """Sum ``[G, R, rows, C, columns]`` over rows and columns, in float64: sums of the lowest scores are finite."""
    sums = torch.empty((*tiles.shape[:2], tiles.shape[3]), dtype=torch.float64, device=tiles.device)
    step = _at_once(tiles, tiles[0, 0].numel())
    for group, of_group in zip(tiles, sums, strict=True):
        for part, into in zip(torch.split(group, step), torch.split(of_group, step), strict=True):
            torch.sum(part.sum(1, dtype=torch.float64), 2, out=into)
    return sums


def keep_best_global(scores: Mapping[str, Tensor], count: int, pattern: Blocks | None = None) -> dict[str, Tensor]:
    """Return the masks of the ``count`` best connections of several layers, which compete with each other.

    Args:
        scores: layer name -> ``[G, out, fan]``, higher = keep.
        count: connections to keep; with blocks, a multiple of their size.
        pattern: blocks of one size that compete by the sums of their scores; ``None``: single connections.

    Returns:
        Layer name -> bool ``[G, out, fan]``, True = keep.
    """
    if pattern is None:
        return dict(zip(scores, mark_best(list(scores.values()), count), strict=True))
    cuts = {name: _cut(layer, pattern) for name, layer in scores.items()}
    sums = [_block_sums(layer.reshape(cuts[name])) for name, layer in scores.items()]
    best = mark_best(sums, count // (pattern.rows * pattern.columns))
    return {
        name: mask[:, :, None, :, None].expand(cuts[name]).reshape(scores[name].shape)
        for name, mask in zip(scores, best, strict=True)
    }
