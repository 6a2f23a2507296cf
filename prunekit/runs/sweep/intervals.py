"""Means over seeds, and paired differences with their intervals.

Two ways of pruning that start from one dense network share most of its luck: the difference within each seed varies far
less than either figure, so only that is worth an interval. This module knows numbers, not what they measure.
"""

import math
from collections.abc import Sequence

import attrs

CONFIDENCE = 0.95
_BISECTIONS = 200  # more than a double has digits


@attrs.frozen
class Mean:
    """The mean of some figures.

    Attributes:
        value: the mean.
        standard_error: sample standard deviation / sqrt(count); ``None`` for a single figure.
        half_width: of the interval that holds the true mean with probability ``CONFIDENCE``, if the figures are
            normally distributed: Student's t times the standard error; ``None`` for a single figure.
        count: figures.
        above: how many of them are above 0: of differences, how often the first was greater.
    """

    value: float
    standard_error: float | None
    half_width: float | None
    count: int
    above: int

    @property
    def verdict(self) -> str:
        """Say on which side of 0 the interval lies: "more", "less", or "not told apart"."""
        if self.half_width is None or abs(self.value) <= self.half_width:
            return "not told apart"
        return "more" if self.value > 0 else "less"


def mean_of(figures: Sequence[float]) -> Mean:
    """Return the mean with its standard error and interval.

    Args:
        figures: one for each seed; at least one.
    """
    count = len(figures)
    value = math.fsum(figures) / count
    above = sum(figure > 0 for figure in figures)
    if count == 1:
        return Mean(value, None, None, count, above)
    error = math.sqrt(math.fsum((figure - value) ** 2 for figure in figures) / (count - 1) / count)
    return Mean(value, error, student_quantile((1 + CONFIDENCE) / 2, count - 1) * error, count, above)


def student_probability(t: float, freedom: int) -> float:
    """Return the probability that Student's t with whole degrees of freedom is below ``t``.

    The finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = total = 0.0
    for power in range(odd, freedom - 1, 2):
        # Each term is the one before times cos^2 and the next ratio of the double factorials.
        term = term * cosine**2 * (power - 1) / power if power > odd else cosine**odd
        total += term
    between = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return (1 + between) / 2


def student_quantile(probability: float, freedom: int) -> float:
    """Return the t that Student's t with whole degrees of freedom stays below with a probability in [0.5, 1)."""
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return high
