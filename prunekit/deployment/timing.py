"""Time calls against each other in turns, so that drift of the machine affects all of them alike.

Times are wall-clock. This module must not know the calls.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import attrs

_TURN = 5e-3
"""Seconds for which a shorter call is repeated in each turn: most repetitions then find their data in the cache, as on
a server that runs nothing else."""

_SHORTEST = 1e-6
"""Lower bound in seconds for the estimated time of a call."""

_FIRST = 3
"""Warm-up calls, from which the number of repetitions is estimated; a long call is made once."""

_LONG = 0.5
"""Seconds after which warming up ends: caches that are cold when a long call begins are warm long before its end."""

_LEAST_TURNS = 5
"""Quartiles of fewer turns are meaningless."""


@attrs.frozen
class Latency:
    """Time of one call in seconds: median and quartiles.

    Attributes:
        median: median of all calls.
        lower: first quartile.
        upper: third quartile.
        calls: number of timed calls.
        turns: median of each turn.
    """

    median: float
    lower: float
    upper: float
    calls: int
    turns: tuple[float, ...] = attrs.field(repr=False)

    @classmethod
    def of(cls, turns: Sequence[Sequence[float]]) -> "Latency":
        """Summarise the times of all turns; at least two in total."""
        seconds = list(itertools.chain(*turns))
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(seconds), tuple(map(statistics.median, turns)))

    def ratio(self, other: "Latency") -> float:
        """Return the median ratio to another call over the same turns; load that slows both changes it little."""
        return statistics.median(own / theirs for own, theirs in zip(self.turns, other.turns, strict=True))


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], turns: int, warmup: int = 0
) -> dict[str, list[list[float]]]:
    """Repeat each call in every turn, and return the seconds of its calls, turn by turn, without the warm-up turns."""
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
    """Time calls in turns for about ``seconds``, but for at least five turns.

    Args:
        calls: name -> call; on an asynchronous device each must wait until the device has finished.
        seconds: wall-clock time for all calls together, without warming up.
    """
    first = {name: warm_up(call) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(_TURN / max(taken, _SHORTEST))) for name, taken in first.items()}
    turn = sum(repeats[name] * max(taken, _SHORTEST) for name, taken in first.items())
    turns = max(_LEAST_TURNS, int(seconds / turn))
    return {name: Latency.of(times) for name, times in take_turns(calls, repeats, turns).items()}


def warm_up(call: Callable[[], object]) -> float:
    """Make up to three calls (one if it is long), and return the shortest time in seconds."""
    times: list[float] = []
    # The first call may wait for threads to wake up; the calls after it are more accurate.
    while len(times) < _FIRST and sum(times) < _LONG:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
