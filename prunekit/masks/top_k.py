"""Find the k largest of many values, exactly and without sorting, usually in one pass.

A sample gives a bracket around the k-th largest value. One pass, block by block, marks the values above the bracket and
collects those inside it; a partition of these few finds the rest. If the sample is misleading, the bracket is bisected.
For any values in any order, the marks equal those of a stable sort: of equal values the earlier one wins. This module
must not know layers or densities.
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
BLOCK = 1 << 19  # values and marks of a block remain in the cache between the steps of a pass
GPU_BLOCK = 1 << 24  # each block is synchronised once
_DEVIATIONS = 3  # of the rank in the sample: one in 400 random samples is misleading, and costs a few more passes
_COLLECTED = 32  # at most one value in this many is collected: 12 bytes each, twice, beside 32 values of 4
_TORCH: dict[np.ufunc, Callable[..., Tensor]] = {np.greater: torch.gt, np.greater_equal: torch.ge, np.equal: torch.eq}
_FAST = {torch.float32, torch.float64, torch.bool}
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def mark_best(tensors: Sequence[Tensor], count: int, *, sample: int = SAMPLE, block: int | None = None) -> list[Tensor]:
    """Mark the ``count`` largest values of all tensors together; of equal values, the earlier one.

    >>> mark_best([torch.tensor([1.0, 5.0]), torch.tensor([3.0])], 2)
    [tensor([False,  True]), tensor([True])]

    For contiguous float32 values, memory beyond the marks is about a tenth of the values; other tensors are copied, one
    at a time.

    Args:
        tensors: floating point, any shapes, all on one device; without NaN. Infinite values are ordinary values.
        count: 0 <= count <= total number of values.
        sample: number of values to sample; fewer values are all used.
        block: number of values to process in one step; ``None``: a size that suits the device.

    Returns:
        bool tensors of the same shapes, with exactly ``count`` True in all.
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
    """Return a CPU tensor as a NumPy array, and any other tensor unchanged.

    On the CPU, NumPy compares and counts several times faster than torch, and waits for no other thread. The array
    shares the tensor's memory, except for half precision, which is converted to float32, exactly.
    """
    if tensor.device.type != "cpu":
        return tensor
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.detach().float() if half else tensor.detach()).numpy()


@attrs.define
class _Middle:
    """The result of one pass: how many values reach the upper bound, and the values strictly between the bounds.

    Attributes:
        above: number of values that reach the upper bound; they are marked.
        inside: number of values between the bounds.
        marks: the marks of each block.
        places: for each block, the indices of the values between the bounds; empty if there are too many to collect.
        values: the values at these indices.
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
        """Write the marks; the value searched for is always within [lowest, highest]."""
        lowest, highest = -math.inf, math.inf
        low, high = self._bracket()
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

    def _bracket(self) -> tuple[float, float]:
        """Return two values of a sample, most likely below and above the value searched for."""
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
        """Return one value from each stretch, at varying places, so that the sample is not periodic."""
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
        """Mark the values that reach ``high``, and collect those strictly between the bounds if they are few."""
        found = _Middle()
        inside = torch.empty(self.block, dtype=torch.bool, device=self.marks[0].device)
        for values, marks in self._blocks():
            _compare(np.greater_equal, values, high, marks)
            found.above += _count(marks)
            between = inside[: values.numel()]
            _compare(np.greater, values, low, between)
            _compare(np.greater, between, marks, between)  # of bools: inside and not above
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
        """Mark the values above ``level``, and the first ``left`` values equal to it."""
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
    """Mark the ``left`` largest of the collected values."""
    values = torch.cat(found.values)
    level = kth_largest(values, left)
    chosen = values > level
    chosen[_places(values == level)[: left - _count(chosen)]] = True
    parts = torch.split(chosen, [len(places) for places in found.places])
    for marks, places, part in zip(found.marks, found.places, parts, strict=True):
        marks.index_fill_(0, places[part], True)


def first_best(rows: Tensor, threshold: Tensor, count: int) -> Tensor:
    """Mark ``count`` values of each row: those above the threshold, then the first of those equal to it.

    Args:
        rows: ``[rows, values]``.
        threshold: ``[rows, 1]``, the ``count``-th largest value of each.
        count: at least 1.
    """
    above = rows > threshold
    level = rows == threshold
    room = count - above.sum(1, keepdim=True)
    # Most rows have room for all equal values; only the others need running sums.
    crowded = (level.sum(1, keepdim=True) > room).squeeze(1).nonzero().squeeze(1)
    level[crowded] &= level[crowded].cumsum(1) <= room[crowded]
    return above.logical_or_(level)


def _between(low: float, high: float, dtype: torch.dtype) -> float:
    """Return the middle value between two, counted in values of the dtype; ``low`` if there is none."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    sign = 1 << (8 * dtype.itemsize - 1)
    bits = torch.tensor([low, high], dtype=dtype).view(integer).tolist()
    # Read as integers, the bits of positive floats have the order of the floats; those of negative ones are reversed.
    place = sum(bit if bit >= 0 else -(bit + sign) for bit in bits) // 2
    return float(torch.tensor(place if place >= 0 else -place - sign, dtype=integer).view(dtype))


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
