"""Pair the masks of two sets by name, and count the weights on which they agree.

This module knows tensors and names. It must not know models, files or optimisers.
"""

from collections.abc import Iterable, Mapping

import attrs
from torch import Tensor

from prunekit.errors import MaskError


@attrs.frozen
class MaskOverlap:
    """Agreement of two masks of one weight, or of a whole network, as counts of weights.

    Attributes:
        both: weights that both masks keep.
        only_first: weights that only the first keeps.
        only_second: weights that only the second keeps.
        neither: weights that neither keeps.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def overlap(self) -> float:
        """Weights kept by both / weights kept by either, in [0, 1]; 1 if nothing is kept (the Jaccard index)."""
        either = self.both + self.only_first + self.only_second
        return self.both / either if either else 1.0

    @property
    def hamming(self) -> int:
        """Number of weights on which the two masks differ."""
        return self.only_first + self.only_second


def overlap(first: Tensor, second: Tensor) -> MaskOverlap:
    """Count the weights that two masks of one shape, on one device, keep."""
    both, kept, other_kept = (int(mask.count_nonzero()) for mask in (first & second, first, second))
    return MaskOverlap(both, kept - both, other_kept - both, first.numel() - kept - other_kept + both)


def total_overlap(overlaps: Iterable[MaskOverlap]) -> MaskOverlap:
    """Return the agreement over all weights, the sums of the counts of each mask.

    >>> total_overlap([MaskOverlap(1, 0, 2, 1), MaskOverlap(3, 1, 0, 0)])
    MaskOverlap(both=4, only_first=1, only_second=2, neither=1)
    """
    counts = (attrs.astuple(single) for single in overlaps)
    return MaskOverlap(*map(sum, zip((0, 0, 0, 0), *counts, strict=True)))


def pair_masks(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the pairs of masks of one name, on the device of the first.

    Raises:
        MaskError: names or shapes differ; all of them are listed.
    """
    problems = [f"{name!r} is only in one of them" for name in sorted(first.keys() ^ second.keys())]
    pairs = {name: (mask, second[name].to(mask.device)) for name, mask in first.items() if name in second}
    problems += [
        f"{name!r} is {list(mask.shape)} and {list(other.shape)}"
        for name, (mask, other) in pairs.items()
        if mask.shape != other.shape
    ]
    if problems:
        raise MaskError(f"masks of different networks cannot be combined or compared: {'; '.join(problems)}")
    return pairs
