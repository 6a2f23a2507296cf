"""The k largest of many values, exactly and without sorting: one pass over the values where a sample foretells well.

A sample gives a bracket around the k-th largest value. One pass, block by block, marks what lies above the bracket and
collects what lies inside it; a partition of these few settles the rest. Where the sample misled, the bracket is
bisected. So whatever the values and their order, the marks are those that a stable sort would give: of equal
values the earlier one wins.
This module knows numbers alone; it must not know layers or densities.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 16  # the bracket then holds about 1.5 % of the values, and finding it costs under a millisecond
BLOCK = 1 << 19  # values, and the marks of a block, stay in the cache between the steps of a pass
GPU_BLOCK = 1 << 24  # each block is waited for once
_DEVIATIONS = 3  # of the rank in the sample: one in 400 random samples misleads, and costs some passes more
_COLLECTED = 32  # at most one value of so many is collected: 12 bytes each, twice, beside 32 values of 4
_TORCH: dict[np.ufunc, Callable[..., Tensor]] = {np.greater: torch.gt, np.greater_equal: torch.ge, np.equal: torch.eq}
_FAST = {torch.float32, torch.float64, torch.bool}
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def mark_best(tensors: Sequence[Tensor], count: int, *, sample: int = SAMPLE, block: int | None = None) -> list[Tensor]:
    """Mark the ``count`` largest values of all tensors together, the earlier one of equals.

    Memory beyond the marks is about a tenth of float32 values that are contiguous; others are copied, one tensor
    at a time.

    Args:
        tensors: floating point, any shapes, all on one device; no NaN. Infinite values are values like any other.
        count: 0 <= count <= values in all.
        sample: how many values to foretell from; fewer values than that are all looked at.
        block: how many values to look at in one step; ``None``: as the device likes it.

    Returns:
        bool tensors of the same shapes, exactly ``count`` True in all.
    """
    if not tensors:
        return []
    size = block or (BLOCK if tensors[0].device.type == "cpu" else GPU_BLOCK)
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    marks = [torch.empty(tensor.numel(), dtype=torch.bool, device=tensor.device) for tensor in flat]
    total = sum(tensor.numel() for tensor in flat)
    if count in (0, total):
        for mark in marks:
            mark.fill_(count > 0)
    else:
        _Ranking(flat, marks, count, max(sample, 1), size).run()
    return [mark.reshape(tensor.shape) for mark, tensor in zip(marks, tensors, strict=True)]


def kth_largest(rows: Tensor, count: int) -> Tensor:
    """Return the ``count``-th largest value of each row of ``[..., values]``; 1 <= count <= values."""
    if rows.device.type != "cpu":
        return rows.kthvalue(rows.shape[-1] - count + 1).values
    # NumPy's partition uses vector instructions; torch's does not.
    place = rows.shape[-1] - count
    return torch.from_numpy(np.partition(as_array(rows), place, axis=-1)[..., place].copy()).to(rows.dtype)


def as_array(tensor: Tensor) -> Any:
    """Return a tensor in the CPU's memory as NumPy's array, any other as it is.

    On the CPU NumPy compares and counts several times faster than torch, and waits for no other thread. It shares the
    memory, but for half precision, which is widened, exactly.
    """
    if tensor.device.type != "cpu":
        return tensor
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.detach().float() if half else tensor.detach()).numpy()


@attrs.define
class _Middle:
    """What one pass found: how many reach the upper bound, and those strictly between the bounds.

    Attributes:
        above: values that reach the upper bound; they are marked.
        inside: values between the bounds.
        marks: the marks of each block.
        places: in each block, the values between the bounds; empty when they are too many to collect.
        values: the same values.
    """

    above: int = 0
    inside: int = 0
    marks: list[Tensor] = attrs.Factory(list)
    places: list[Tensor] = attrs.Factory(list)
    values: list[Tensor] = attrs.Factory(list)


@attrs.define
class _Ranking:
    """The search for the ``count``-th largest value."""

    tensors: Sequence[Tensor]
    marks: Sequence[Tensor]
    count: int
    sample: int
    block: int
    dtype: torch.dtype = attrs.field(init=False)
    total: int = attrs.field(init=False)
    most: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.dtype = reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors))
        self.total = sum(tensor.numel() for tensor in self.tensors)
        self.most = max(self.total // _COLLECTED, self.sample)

    def run(self) -> None:
        """Write the marks. The value sought is always within [lowest, highest]."""
        lowest, highest = -math.inf, math.inf
        low, high = self._foretell()
        while True:
            found = self._look(low, high)
            if self.count <= found.above:
                above = self._count(lambda values: values > high)  # noqa: B023 - called in this turn of the loop
                if above < self.count:
                    return self._fill(high, self.count - above)
                lowest = high
            elif self.count > found.above + found.inside:
                reach = self._count(lambda values: values >= low)  # noqa: B023 - likewise
                if self.count <= reach:
                    return self._fill(low, self.count - found.above - found.inside)
                highest = low
            elif found.values:
                return _settle(found, self.count - found.above)
            else:
                lowest, highest = low, high
            low, high = _between(lowest, highest, self.dtype), highest

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for tensor, mark in zip(self.tensors, self.marks, strict=True):
            for values, marks in zip(torch.split(tensor, self.block), torch.split(mark, self.block), strict=True):
                yield values.to(self.dtype), marks

    def _foretell(self) -> tuple[float, float]:
        """Return two values of a sample that most likely have the sought one between them."""
        if self.total <= self.sample:
            return -math.inf, math.inf
        values = self._sampled()
        size = values.numel()
        share = self.count / self.total
        margin = _DEVIATIONS * math.sqrt(size * share * (1 - share)) + 1
        first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
        high = float(kth_largest(values, first)) if first >= 1 else math.inf
        low = float(kth_largest(values, last)) if last <= size else -math.inf
        return low, high

    def _sampled(self) -> Tensor:
        """Take one value of each stretch, at changing places, so that no period of the values is the sample's."""
        number = np.arange(self.sample)
        spread = (number + (number * _GOLDEN_RATIO) % 1) * (self.total / self.sample)
        places = torch.from_numpy(spread.astype(np.int64).clip(max=self.total - 1))
        ends = torch.tensor([0] + [tensor.numel() for tensor in self.tensors]).cumsum(0)
        bounds = torch.searchsorted(places, ends).tolist()
        parts = []
        for index, tensor in enumerate(self.tensors):
            inside = places[bounds[index] : bounds[index + 1]] - ends[index]
            parts.append(_take(tensor, inside.to(tensor.device)).to(self.dtype))
        return torch.cat(parts)

    def _look(self, low: float, high: float) -> _Middle:
        """Mark what reaches ``high``, and collect what lies strictly between, unless it is too much."""
        found = _Middle()
        inside = torch.empty(self.block, dtype=torch.bool, device=self.marks[0].device)
        for values, marks in self._blocks():
            _compare(np.greater_equal, values, high, marks)
            found.above += _count(marks)
            between = inside[: values.numel()]
            _compare(np.greater, values, low, between)
            _compare(np.greater, between, marks, between)  # of truths: inside and not above
            if found.inside > self.most:
                found.inside += _count(between)
                continue
            places = _places(between)
            found.inside += len(places)
            if found.inside > self.most:
                found.marks, found.places, found.values = [], [], []
                continue
            found.marks.append(marks)
            found.places.append(places)
            found.values.append(_take(values, places))
        return found

    def _count(self, holds: Callable[[Tensor], Tensor]) -> int:
        return sum(_count(holds(values)) for values, _ in self._blocks())

    def _fill(self, level: float, left: int) -> None:
        """Mark what is above ``level``, and the first ``left`` values that are equal to it."""
        for values, marks in self._blocks():
            if left:
                _compare(np.equal, values, level, marks)
            here = _count(marks) if left else 0
            first = _places(marks)[:left] if here > left else None
            _compare(np.greater_equal if 0 < here <= left else np.greater, values, level, marks)
            if first is not None:
                marks[first] = True
            left -= min(here, left)


def _settle(found: _Middle, left: int) -> None:
    """Mark the ``left`` largest of what was collected."""
    values = torch.cat(found.values)
    level = kth_largest(values, left)
    chosen = values > level
    chosen[_places(values == level)[: left - _count(chosen)]] = True
    parts = torch.split(chosen, [len(places) for places in found.places])
    for marks, places, part in zip(found.marks, found.places, parts, strict=True):
        marks.index_fill_(0, places[part], True)


def first_best(rows: Tensor, threshold: Tensor, count: int) -> Tensor:
    """Mark ``count`` values of each row: those above the threshold, then the first of those that are equal to it.

    Args:
        rows: ``[rows, values]``.
        threshold: ``[rows, 1]``, the ``count``-th largest value of each.
        count: at least 1.
    """
    above = rows > threshold
    level = rows == threshold
    room = count - above.sum(1, keepdim=True)
    # Most rows have no more equals than room; running sums are for the others.
    crowded = (level.sum(1, keepdim=True) > room).squeeze(1).nonzero().squeeze(1)
    level[crowded] &= level[crowded].cumsum(1) <= room[crowded]
    return above.logical_or_(level)


def _between(low: float, high: float, dtype: torch.dtype) -> float:
    """Return the value in the middle between two, counted in values that the type has; ``low`` if there is none."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    sign = 1 << (8 * dtype.itemsize - 1)
    bits = torch.tensor([low, high], dtype=dtype).view(whole).tolist()
    # As whole numbers the bits of positive floats have the floats' order; those of negative ones have it reversed.
    place = sum(bit if bit >= 0 else -(bit + sign) for bit in bits) // 2
    return float(torch.tensor(place if place >= 0 else -place - sign, dtype=whole).view(dtype))


def _count(marks: Tensor) -> int:
    return int(np.count_nonzero(marks.numpy()) if marks.device.type == "cpu" else marks.count_nonzero())


def _places(marks: Tensor) -> Tensor:
    if marks.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(marks.numpy()))
    return marks.nonzero().squeeze(1)


def _compare(how: np.ufunc, values: Tensor, bound: float | Tensor, out: Tensor) -> None:
    """Write ``how(values, bound)``: greater, greater_equal or equal."""
    if values.device.type == "cpu" and values.dtype in _FAST:
        how(values.numpy(), bound.numpy() if isinstance(bound, Tensor) else bound, out=out.numpy())
    else:
        _TORCH[how](values, bound, out=out)


def _take(values: Tensor, places: Tensor) -> Tensor:
    if values.device.type == "cpu" and values.dtype in _FAST:
        return torch.from_numpy(values.numpy().take(places.numpy()))
    return values[places]
