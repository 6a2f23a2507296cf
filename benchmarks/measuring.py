"""What the benchmarks share: taking turns, medians, one row of the table. Timings are compared within one run only."""

import statistics
import time
from collections.abc import Callable, Mapping

import attrs


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        ours: seconds, median.
        peer: against what.
        theirs: seconds, median.
        target: of the ratio ours / theirs, or of our seconds where ``absolute``.
        absolute: whether the target is in seconds.
    """

    what: str
    ours: float
    peer: str
    theirs: float
    target: float
    absolute: bool = False

    @property
    def ratio(self) -> float:
        """Ours / theirs."""
        return self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return (self.ours if self.absolute else self.ratio) <= self.target


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Return the median seconds of each call; they take turns, so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
