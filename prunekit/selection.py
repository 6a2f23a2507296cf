"""Exactly-k selection: which scores win, with the count exact and ties broken the same way every time.

Scores are ``[G, out, fan]``, higher = keep. The number kept is always ``round(density * weights)`` (of
blocks: ``round(density * blocks)``); per unit it differs by at most one between units. Among equal
scores the earlier connection wins.
This module knows scores and counts only.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import attrs
import torch
from torch import Tensor

from prunekit.errors import MaskError

Scope = Literal["unit", "layer", "global"]


_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@attrs.frozen
class NofM:
    """Keep n of every m neighbours along the input channels (2:4 is ``NofM(2, 4)``)."""

    n: int
    m: int


@attrs.frozen
class Blocks:
    """Keep or drop blocks of ``rows`` output units x ``columns`` connections; 1 x fan removes whole units."""

    rows: int
    columns: int


Pattern = NofM | Blocks


@attrs.frozen
class Quota:
    """How many connections of one layer to keep, and what competes with what.

    Attributes:
        density: kept / total, in (0, 1].
        fan_shape: the shape of one unit's connections, input channels first.
        scope: "unit" gives every output unit its share; "layer" lets all connections compete.
        pattern: N:M or blocks; ``None``: unstructured.
        candidates: bool ``[G, out, fan]``, the connections that may be kept; ``None``: all.
    """

    density: float
    fan_shape: tuple[int, ...]
    scope: Literal["unit", "layer"] = "layer"
    pattern: Pattern | None = None
    candidates: Tensor | None = None


def kept_count(density: float, total: int) -> int:
    """Return round(density * total), halves up, computed exactly."""
    return math.floor(Fraction(density) * total + Fraction(1, 2))


def unit_counts(density: float, units: int, fan: int) -> Tensor:
    """Return how many connections each of ``units`` keeps: int64 ``[units]``.

    They add up to ``kept_count(density, units * fan)`` and differ by at most one; the larger shares
    are spread evenly over the units. At a higher density no unit has less, so that a layer can be
    pruned step by step.

    >>> unit_counts(0.5, 3, 3).tolist()
    [2, 1, 2]
    """
    share, extra = divmod(kept_count(density, units * fan), units)
    # Multiples of the golden ratio spread evenly, and so do the first few of them in the order of their size.
    place = (torch.arange(units, dtype=torch.float64) * _GOLDEN_RATIO).frac().argsort().argsort()
    return share + (place < extra).to(torch.int64)


def asked_count(density: float, total: int, pattern: Pattern | None = None) -> int:
    """Return how many of ``total`` connections a density keeps: whole blocks, where the pattern has blocks."""
    size = pattern.rows * pattern.columns if isinstance(pattern, Blocks) else 1
    return kept_count(density, total // size) * size


def pattern_problem(pattern: Pattern | None, density: float, outputs: int, fan_shape: tuple[int, ...]) -> str:
    """Say why a pattern does not fit a layer or a density; "" if it does."""
    if isinstance(pattern, NofM):
        if not 0 < pattern.n <= pattern.m or fan_shape[0] % pattern.m:
            return f"pattern {pattern.n}:{pattern.m} does not divide {fan_shape[0]} input channels"
        if not math.isclose(density, pattern.n / pattern.m):
            return f"pattern {pattern.n}:{pattern.m} is density {pattern.n / pattern.m:g}, asked was {density:g}"
    if isinstance(pattern, Blocks):
        fan = math.prod(fan_shape)
        if min(pattern.rows, pattern.columns) < 1 or outputs % pattern.rows or fan % pattern.columns:
            return f"blocks of {pattern.rows} x {pattern.columns} do not divide a layer of {outputs} x {fan}"
    return ""


def unit_shares(quota: Quota, units: int, fan: int) -> Tensor:
    """Return how many connections each unit keeps under a quota: int64 ``[units]``.

    As ``unit_counts``, but no unit is asked for more than it has left; others give the rest.

    Raises:
        MaskError: when all units together have fewer left than are to be kept.
    """
    counts = unit_counts(quota.density, units, fan)
    if quota.candidates is None:
        return counts
    room = quota.candidates.reshape(units, fan).sum(1).cpu()
    if int(counts.sum()) > int(room.sum()):
        raise MaskError(
            f"density {quota.density:g} asks for {int(counts.sum())} connections, but only {int(room.sum())} are left"
        )
    missing = int((counts - room).clamp(min=0).sum())
    counts = counts.minimum(room)
    while missing:
        spare = (room > counts).nonzero().squeeze(1)[:missing]
        counts[spare] += 1
        missing -= len(spare)
    return counts


def top_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts[u]`` largest entries of each row, the earlier one where scores are equal.

    Args:
        scores: ``[units, fan]``; ``-inf`` is a score like any other.
        counts: int64 ``[units]``, 0 <= count <= fan.

    Returns:
        bool ``[units, fan]``, exactly ``counts[u]`` True in row u.
    """
    counts = counts.to(scores.device).unsqueeze(1)
    largest = int(counts.max()) if counts.numel() else 0
    if largest == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    best = scores.topk(largest, dim=1).values
    threshold = best.gather(1, (counts - 1).clamp(min=0))
    above = scores > threshold
    level = scores == threshold
    # The k-th largest value settles all but its equals; of those the first ones fill the count.
    level &= level.cumsum(1) <= counts - above.sum(1, keepdim=True)
    return (above | level) & (counts > 0)


def keep_best(scores: Tensor, quota: Quota) -> Tensor:
    """Return the mask of the best-scored connections of one layer, bool ``[G, out, fan]``.

    Raises:
        MaskError: when the pattern does not fit the layer or the density, or when fewer connections
            are left than are to be kept.
    """
    problem = pattern_problem(quota.pattern, quota.density, scores.shape[1], quota.fan_shape)
    if problem:
        raise MaskError(problem)
    scores = among(scores, quota.candidates)
    if isinstance(quota.pattern, NofM):
        mask = _keep_n_of_m(scores, quota.pattern, quota)
    elif isinstance(quota.pattern, Blocks):
        mask = _keep_blocks(scores, quota.pattern, quota)
    else:
        mask = _keep_rows(scores, quota)
    if quota.candidates is not None and bool((mask & ~quota.candidates).any()):
        raise MaskError(
            f"density {quota.density:g} asks for {int(mask.sum())} connections, "
            f"but only {int((mask & quota.candidates).sum())} of the right places are still there"
        )
    return mask


def among(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Rank what is no candidate below everything else, also below candidates that score ``-inf``."""
    if candidates is None:
        return scores
    return scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(~candidates, -math.inf)


def _keep_rows(scores: Tensor, quota: Quota) -> Tensor:
    rows = scores.flatten(0, 1) if quota.scope == "unit" else scores.reshape(1, -1)
    return top_counts(rows, unit_shares(quota, *rows.shape)).reshape(scores.shape)


def _keep_n_of_m(scores: Tensor, pattern: NofM, quota: Quota) -> Tensor:
    # Neighbours along the input channels: kernel taps move to the front.
    by_channel = scores.reshape(*scores.shape[:2], quota.fan_shape[0], -1).transpose(-1, -2)
    groups = by_channel.reshape(-1, pattern.m)
    mask = top_counts(groups, torch.full((len(groups),), pattern.n)).reshape(by_channel.shape)
    return mask.transpose(-1, -2).reshape(scores.shape)


def _keep_blocks(scores: Tensor, pattern: Blocks, quota: Quota) -> Tensor:
    groups, out, fan = scores.shape
    rows, columns = pattern.rows, pattern.columns
    cut = (groups, out // rows, rows, fan // columns, columns)
    whole = None if quota.candidates is None else quota.candidates.reshape(cut).all(4).all(2)
    # In float64 the sum of a block of the lowest scores is still above -inf.
    mask = _keep_rows(among(scores.reshape(cut).double().sum((2, 4)), whole), attrs.evolve(quota, candidates=whole))
    return mask[:, :, None, :, None].expand(cut).reshape(scores.shape)


def keep_best_global(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Let the connections of several layers compete: the ``count`` best of all, as one mask per layer."""
    flat = torch.cat([layer.reshape(-1) for layer in scores.values()])
    mask = top_counts(flat.unsqueeze(0), torch.tensor([count])).squeeze(0)
    parts = torch.split(mask, [layer.numel() for layer in scores.values()])
    return {name: part.reshape(layer.shape) for (name, layer), part in zip(scores.items(), parts, strict=True)}
