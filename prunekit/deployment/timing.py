"""How long calls take beside each other: they take turns, so that a drift of the machine hits all alike.

Times are wall-clock. This module must not know what is called.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs

_TURN = 5e-3
"""Seconds that a call gets in a turn where it is shorter than that: most of its calls then find their data in the
cache, as in a server that runs nothing else."""

_SHORTEST = 1e-6
"""Seconds below which nothing is estimated: such a call is none."""

_FIRST = 3
"""Calls of each that warm up, and tell how many there are to be; one where it is long."""

_LONG = 0.5
"""Seconds of such a call: what is cold at its beginning is warm long before its end."""

_LEAST_TURNS = 5
"""With fewer, quartiles mean nothing."""


@attrs.frozen
class Latency:
    """Seconds of one call: the median, and the quartiles around it.

    Attributes:
        median: of all calls.
        lower: the first quartile.
        upper: the third quartile.
        calls: how many were timed.
        turns: the median of each turn.
    """

    median: float
    lower: float
    upper: float
    calls: int
    turns: tuple[float, ...] = attrs.field(repr=False)

    @classmethod
    def of(cls, turns: Sequence[Sequence[float]]) -> "Latency":
        """Summarise the times of each turn, at least two together."""
        seconds = list(itertools.chain(*turns))
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds), tuple(map(statistics.median, turns)))

    def ratio(self, other: "Latency") -> float:
        """Return the median of the ratios to another call in the same turns; what slows both down changes it little."""
        return statistics.median(own / theirs for own, theirs in zip(self.turns, other.turns, strict=True))


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], turns: int, warmup: int = 0
) -> dict[str, list[list[float]]]:
    """Call each so often in each turn, and return the seconds of its calls, turn by turn, after the warm-up turns."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(warmup + turns):
        for name, call in calls.items():
            times = []
            for _ in range(repeats[name]):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            seconds[name].append(times)
    return {name: times[warmup:] for name, times in seconds.items()}


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
    """Time calls in turns for about so long, or for five turns where those take longer.

    Args:
        calls: what to call, by name; on a device that works on its own, each waits until that has finished.
        seconds: for all together, beside the first calls of each, which are not counted.
    """
    first = {name: warm_up(call) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(_TURN / max(taken, _SHORTEST))) for name, taken in first.items()}
    turn = sum(repeats[name] * max(taken, _SHORTEST) for name, taken in first.items())
    turns = max(_LEAST_TURNS, int(seconds / turn))
    return {name: Latency.of(times) for name, times in take_turns(calls, repeats, turns).items()}


def warm_up(call: Callable[[], object]) -> float:
    """Call a few times what is short, once what is long, and return the shortest time in seconds."""
    times: list[float] = []
    # The first call after another form's waits for threads that sleep or serve that form; those behind it tell more.
    while len(times) < _FIRST and sum(times) < _LONG:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
