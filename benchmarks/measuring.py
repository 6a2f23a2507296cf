"""Shared by the benchmarks: timing in turns, medians, a table row. Timings are compared within one run only."""

import itertools
import statistics
from collections.abc import Callable, Mapping

import attrs

from prunekit.deployment.timing import take_turns


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        ours: our figure, of times the median.
        peer: against what.
        theirs: their figure.
        target: of the ratio ours / theirs, or of our figure where ``absolute``.
        absolute: whether the target is in the unit.
        unit: of both figures; times are in ms.
    """

    what: str
    ours: float
    peer: str
    theirs: float
    target: float
    absolute: bool = False
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """Ours / theirs."""
        return self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return (self.ours if self.absolute else self.ratio) <= self.target


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Return the median ms of each call; they take turns, so that drift of the machine affects all alike."""
    times = take_turns(calls, dict.fromkeys(calls, 1), repeats, warmup)
    return {name: statistics.median(itertools.chain(*turns)) * 1e3 for name, turns in times.items()}
