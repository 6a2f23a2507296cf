"""Means over seeds with confidence intervals.

Two ways of pruning that start from the same dense network share most of the variation between seeds: their difference
within each seed varies far less than either value, so intervals are useful for differences. This module must not know
what the numbers measure.
"""

import math
from collections.abc import Sequence

import attrs

CONFIDENCE = 0.95
_BISECTIONS = 200  # more than the binary digits of a double


@attrs.frozen
class Mean:
    """The mean of a sample.

    Attributes:
        value: the mean.
        standard_error: sample standard deviation / sqrt(count); ``None`` for a single value.
        half_width: of the interval that contains the true mean with probability ``CONFIDENCE``, if the values are
            normally distributed: Student's t times the standard error; ``None`` for a single value.
        count: number of values.
        above: number of values above 0.
    """

    value: float
    standard_error: float | None
    half_width: float | None
    count: int
    above: int

    @property
    def verdict(self) -> str:
        """The side of 0 on which the interval lies: "more", "less", or "inconclusive" if it contains 0."""
        if self.half_width is None or abs(self.value) <= self.half_width:
            return "inconclusive"
        return "more" if self.value > 0 else "less"


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean with its standard error and interval.

    >>> mean_of([0.01, 0.02, 0.03]).verdict
    'inconclusive'

    Args:
        values: one for each seed; at least one.
    """
    count = len(values)
    value = math.fsum(values) / count
    above = sum(single > 0 for single in values)
    if count == 1:
        return Mean(value, None, None, count, above)
    error = math.sqrt(math.fsum((single - value) ** 2 for single in values) / (count - 1) / count)
    return Mean(value, error, student_quantile((1 + CONFIDENCE) / 2, count - 1) * error, count, above)


def student_probability(t: float, freedom: int) -> float:
    """Return the cumulative distribution function of Student's t at ``t``.

    Args:
        t: any number.
        freedom: degrees of freedom, a whole number of at least 1.

    Source: the finite sums of Abramowitz and Stegun (1964), equations 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = total = 0.0
    for power in range(odd, freedom - 1, 2):
        # Each term is the previous one times cos^2 and the next ratio of the double factorials.
        term = term * cosine**2 * (power - 1) / power if power > odd else cosine**odd
        total += term
    between = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return (1 + between) / 2


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t, the inverse of ``student_probability``.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, a whole number of at least 1.
    """
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return high
