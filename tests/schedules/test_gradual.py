import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, PlanRequest, Target, check_plan
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.schedules.gradual import Gradual
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 40, (80,)), LayerShape("b", "linear", 1, 40, (80,))]
DENSITIES = st.floats(0.001, 1)


def request(a: float = 0.25, b: float = 0.5) -> PlanRequest:
    return PlanRequest(LAYERS, [Target("a", {"a": a}), Target("b", {"b": b})], Budget(9, "epochs"), Budget(50, "steps"))


@pytest.mark.parametrize("options", [{}, {"curve": "linear", "scope": "global"}, {"when": "after", "updates": 1}])
def test_it_fulfils_the_contract(options) -> None:
    check_schedule(Gradual, **options)


def test_the_cubic_fall_is_the_published_formula() -> None:
    [stage] = Gradual(updates=7, begin=0.2, end=0.9).plan(request()).stages
    assert stage.budget == Budget(9, "epochs")
    # Zhu & Gupta, equation 1: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, with s_i = 0.
    for number, update in enumerate(stage.updates, 1):
        time = 0.2 + number * (0.9 - 0.2) / 7
        assert update.at == pytest.approx(time)
        for name, target in (("a", 0.25), ("b", 0.5)):
            final = 1 - target
            sparsity = final + (0 - final) * (1 - (time - 0.2) / (7 * (0.9 - 0.2) / 7)) ** 3
            assert 1 - update.targets[name] == pytest.approx(sparsity)


def test_the_linear_curve_falls_evenly() -> None:
    [stage] = Gradual(curve="linear", updates=3).plan(request()).stages
    assert [update.targets["a"] for update in stage.updates] == pytest.approx([0.75, 0.5, 0.25])


def test_after_training_the_fall_is_within_the_retraining_budget() -> None:
    dense, gradual = Gradual(when="after").plan(request()).stages
    assert (dense.budget, dense.updates, gradual.budget) == (Budget(9, "epochs"), (), Budget(50, "steps"))


@given(
    DENSITIES, DENSITIES, st.integers(1, 60), st.sampled_from(["cubic", "linear"]), st.floats(0, 0.4), st.floats(0.5, 1)
)
def test_densities_fall_points_ascend_and_both_end_exactly(a, b, updates, curve, begin, end):
    plan = Gradual(curve=curve, updates=updates, begin=begin, end=end).plan(request(a, b))
    check_plan(plan, LAYERS)
    changes = plan.stages[0].updates
    assert len(changes) == updates
    assert changes[-1].targets == {"a": a, "b": b}
    assert changes[-1].at == pytest.approx(end)
    points = [update.at for update in changes]
    assert points == sorted(points)
    for name in ("a", "b"):
        densities = [1.0, *(update.targets[name] for update in changes)]
        assert densities == sorted(densities, reverse=True)
        assert all(0 < density <= 1 for density in densities)


def test_an_end_before_the_beginning_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule.begin is 0.8 and schedule.end is 0.75"):
        Gradual(begin=0.8).plan(request())


def test_in_a_run_the_last_steps_train_under_the_final_masks(toy_run, watch) -> None:
    recipe = {"structure": "hidden=1/4 conv_b=1/2", "schedule": {"name": "gradual", "updates": 5}}
    finished, _, _ = toy_run(recipe, [watch])
    assert [event.step for event in watch.events] == [9, 18, 27, 36, 45]
    assert [event.layers["hidden"].kept for event in watch.events] == [730, 475, 343, 295, 288]
    assert finished.stages[-1].kept["hidden"] == 288


def test_in_a_run_all_layers_may_compete(toy_run, watch) -> None:
    recipe = {"structure": "hidden=1/4 conv_b=1/2", "schedule": {"name": "gradual", "updates": 3, "scope": "global"}}
    finished, _, _ = toy_run(recipe, [watch])
    kept = finished.stages[-1].kept
    assert kept["hidden"] + kept["conv_b"] == 288 + 144
    assert kept["hidden"] != 288
