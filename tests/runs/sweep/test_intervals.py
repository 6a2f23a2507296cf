import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.runs.sweep.intervals import mean_of, student_probability, student_quantile

# Published 97.5 % points of Student's t.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "point"), TABLE.items())
def test_quantiles_are_those_of_the_published_table(freedom, point):
    assert student_quantile(0.975, freedom) == pytest.approx(point, abs=6e-4)


@given(st.floats(-8, 8), st.integers(1, 40))
def test_the_probability_is_the_integral_of_the_density(t, freedom):
    log_factor = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)

    def density(x):
        return math.exp(log_factor - (freedom + 1) / 2 * math.log1p(x * x / freedom))

    steps = 2000  # Simpson's rule
    width = t / steps
    total = sum((1 if i in {0, steps} else 4 if i % 2 else 2) * density(i * width) for i in range(steps + 1))
    assert student_probability(t, freedom) == pytest.approx(0.5 + total * width / 3, abs=1e-9)


@given(st.floats(0.5, 0.9999), st.integers(1, 40))
def test_the_quantile_inverts_the_probability(probability, freedom):
    assert student_probability(student_quantile(probability, freedom), freedom) == pytest.approx(probability, abs=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_mean_error_and_count_are_those_of_the_standard_library(values):
    found = mean_of(values)
    assert found.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-6)
    assert found.count == len(values)
    assert found.above == sum(single > 0 for single in values)


def test_one_value_has_no_interval_and_is_inconclusive():
    assert mean_of([0.5]).half_width is None
    assert mean_of([0.5]).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.0], "more"),
        ([-1.0, -1.1, -0.9, -1.0], "less"),
        ([1.0, -1.1, 0.9, -1.0], "inconclusive"),
        ([0.0, 0.0], "inconclusive"),
    ],
)
def test_the_verdict_is_the_side_of_zero_that_the_interval_lies_on(values, verdict):
    assert mean_of(values).verdict == verdict
