import time

import pytest

from prunekit.deployment import timing
from prunekit.deployment.timing import Latency, interleaved, take_turns, warm_up


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


def test_short_calls_are_timed_more_often_and_each_at_least_five_times(clock):
    clock(timing)
    times = interleaved({"short": lambda: clock.sleep(1e-4), "long": lambda: clock.sleep(0.01)}, seconds=0.0)
    assert times["long"].calls == 5
    assert times["short"].calls == pytest.approx(5 * 5e-3 / 1e-4, abs=5)
    for latency, took in ((times["long"], 0.01), (times["short"], 1e-4)):
        assert (latency.lower, latency.median, latency.upper) == pytest.approx((took, took, took))


def test_calls_below_the_resolution_of_the_clock_are_repeated_often(clock):
    clock(timing)
    assert interleaved({"none": lambda: None}, seconds=0.0)["none"].calls == pytest.approx(5 * 5e-3 / 1e-6, abs=5)


def test_the_time_given_bounds_the_turns(clock):
    clock(timing)
    times = interleaved({"sleep": lambda: clock.sleep(0.00501)}, seconds=0.1)
    assert times["sleep"].calls == 19
    assert clock.now == pytest.approx(0.00501 * (3 + 19))


def test_calls_are_timed_in_wall_clock_time():
    times = interleaved({"sleep": lambda: time.sleep(0.01)}, seconds=0.0)
    assert times["sleep"].lower >= 0.01


def test_a_long_call_warms_up_once(clock):
    clock(timing)
    counts = {"long": 0, "short": 0}

    def call(name, seconds):
        counts[name] += 1
        clock.sleep(seconds)

    assert warm_up(lambda: call("long", 0.6)) == pytest.approx(0.6)
    assert warm_up(lambda: call("short", 0.1)) == pytest.approx(0.1)
    assert counts == {"long": 1, "short": 3}


def test_a_call_that_fails_is_not_timed():
    with pytest.raises(ZeroDivisionError):
        interleaved({"fails": lambda: 1 / 0}, seconds=0.1)
