from functools import partial

import pytest

from prunekit.deployment.sparse import form_choice as choosing
from prunekit.deployment.sparse.form_choice import measure


@pytest.fixture
def calls(clock):
    """Return a function that gives counts, and forms that take so many milliseconds each."""
    clock(choosing)

    def make(**milliseconds):
        counts = dict.fromkeys(milliseconds, 0)

        def call(form):
            counts[form] += 1
            clock.sleep(milliseconds[form] / 1e3)

        return counts, {form: partial(call, form) for form in milliseconds}

    return make


def test_the_fastest_form_is_chosen_and_a_hopeless_one_is_timed_twice(calls):
    counts, forms = calls(dense=10, vectors=4, columns=100)
    timing = measure(forms, 8, 16)
    assert (timing.batch_size, timing.size, timing.form) == (8, 16, "vectors")
    assert timing.ratio == pytest.approx(0.4)
    assert timing.ratios["columns"] == pytest.approx(10)
    assert timing.milliseconds == pytest.approx({"dense": 10, "vectors": 4, "columns": 100})
    assert counts["columns"] == 5  # once to warm up, and once before each
    assert counts["dense"] == counts["vectors"] >= 11


@pytest.mark.parametrize(("columns", "chosen"), [(9.6, "dense"), (9.4, "columns")])
def test_a_form_that_is_barely_faster_is_not_chosen(calls, columns, chosen):
    timing = measure(calls(dense=10, columns=columns)[1], 1, 1)
    assert timing.form == chosen
    assert timing.ratio == pytest.approx(1 if chosen == "dense" else 0.94)


def test_the_worse_of_median_and_shortest_time_counts(calls, clock):
    _, forms = calls(dense=10)
    slow = iter([0, 0, 0, 0, 1] * 100)

    def sometimes():
        clock.sleep(0.002 if next(slow) else 0.02)

    # It is slower nearly always, but its shortest time is short.
    timing = measure(forms | {"columns": sometimes}, 1, 1)
    assert timing.form == "dense"
    assert timing.ratios["columns"] == pytest.approx(2)


@pytest.mark.parametrize(("milliseconds", "turns"), [(1, 25), (10, 7), (100, 5), (1000, 2)])
def test_measuring_takes_25_turns_or_a_quarter_of_a_second_but_five_or_two_long_ones(calls, milliseconds, turns):
    counts, forms = calls(dense=milliseconds, vectors=milliseconds)
    measure(forms, 1, 1)
    assert counts == {"dense": 1 + 2 * turns, "vectors": 1 + 2 * turns}
