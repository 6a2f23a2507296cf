import time

import pytest

from prunekit import timing
from prunekit.timing import Latency, interleaved, take_turns, warm_up


def test_calls_take_turns_and_the_warm_up_is_not_counted():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = take_turns(calls, {"a": 1, "b": 2}, turns=3, warmup=1)
    assert "".join(order) == "abb" * 4
    assert {name: [len(turn) for turn in turns] for name, turns in seconds.items()} == {"a": [1] * 3, "b": [2] * 3}


def test_a_latency_has_the_quartiles_of_its_calls():
    latency = Latency.of([[5.0, 1.0, 2.0], [4.0, 3.0]])
    assert (latency.lower, latency.median, latency.upper, latency.calls) == (2, 3, 4, 5)
    assert latency.turns == (2, 3.5)


def test_a_ratio_is_taken_within_turns():
    ours, theirs = Latency.of([[1.0], [10.0], [2.0]]), Latency.of([[2.0], [20.0], [1.0]])
    assert ours.ratio(theirs) == 0.5


def test_short_calls_are_timed_more_often_and_each_at_least_five_times():
    times = interleaved({"short": lambda: None, "long": lambda: time.sleep(0.01)}, seconds=0.0)
    assert times["long"].calls == 5
    assert times["short"].calls > 100
    assert times["long"].median >= 0.01
    for latency in times.values():
        assert 0 <= latency.lower <= latency.median <= latency.upper


def test_the_time_given_bounds_the_turns():
    began = time.perf_counter()
    times = interleaved({"sleep": lambda: time.sleep(0.005)}, seconds=0.1)
    assert time.perf_counter() - began < 5
    assert 5 <= times["sleep"].calls <= 40


def test_a_long_call_is_warm_after_once(monkeypatch):
    monkeypatch.setattr(timing, "_LONG", 0.01)
    counts = {"long": 0, "short": 0}

    def call(name, seconds):
        counts[name] += 1
        time.sleep(seconds)

    assert 0.02 <= warm_up(lambda: call("long", 0.02)) < 1
    assert warm_up(lambda: call("short", 0)) < 0.01
    assert counts == {"long": 1, "short": 3}


def test_a_call_that_fails_is_not_timed():
    with pytest.raises(ZeroDivisionError):
        interleaved({"fails": lambda: 1 / 0}, seconds=0.1)
