import time
from functools import partial

from prunekit.sparse import choosing
from prunekit.sparse.choosing import measure


def calls(**milliseconds):
    counts = dict.fromkeys(milliseconds, 0)

    def call(form):
        counts[form] += 1
        time.sleep(milliseconds[form] / 1e3)

    return counts, {form: partial(call, form) for form in milliseconds}


def test_the_fastest_form_is_chosen_and_what_is_hopeless_is_timed_twice():
    counts, forms = calls(dense=10, vectors=4, columns=100)
    timing = measure(forms, 8, 16)
    assert (timing.batch_size, timing.size, timing.form) == (8, 16, "vectors")
    assert 0.3 < timing.ratio < 0.7
    assert timing.ratios["columns"] > 5
    assert 9 < timing.milliseconds["dense"] < 20
    assert counts["columns"] == 5  # once to warm up, and once before each
    assert counts["dense"] >= 6


def test_a_form_that_hardly_wins_is_not_taken():
    timing = measure(calls(dense=10, columns=9.9)[1], 1, 1)
    assert timing.form == "dense"
    assert timing.ratio == 1


def test_the_worse_of_median_and_shortest_time_counts():
    _, forms = calls(dense=10, columns=2)
    slow = iter([0, 0, 0, 0, 1] * 100)

    def sometimes():
        time.sleep(0.002 if next(slow) else 0.02)

    # It is slower nearly always, but its shortest time is short.
    assert measure(forms | {"columns": sometimes}, 1, 1).form == "dense"


def test_of_long_calls_two_turns_will_do(monkeypatch):
    monkeypatch.setattr(choosing, "_PATIENCE", 0.01)
    counts, forms = calls(dense=10, columns=2)
    assert measure(forms, 1, 1).form == "columns"
    assert counts == {"dense": 5, "columns": 5}


def test_measuring_takes_little_time():
    began = time.perf_counter()
    measure(calls(dense=1, vectors=1)[1], 1, 1)
    assert time.perf_counter() - began < 2
