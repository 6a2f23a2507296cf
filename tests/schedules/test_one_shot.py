import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, PlanRequest, Target, check_plan
from prunekit.layers.view import LayerShape
from prunekit.schedules.one_shot import OneShot
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 4, (8,)), LayerShape("b", "linear", 1, 4, (8,))]
REQUEST = PlanRequest(
    LAYERS, [Target("b", {"b": 0.5}), Target("a", {"a": 0.25})], Budget(9, "epochs"), Budget(50, "steps")
)


def test_it_fulfils_the_contract() -> None:
    check_schedule(OneShot)
    check_schedule(OneShot, scope="global")


def test_all_layers_are_pruned_at_the_start_of_one_stage_after_dense_training() -> None:
    dense, pruned = OneShot().plan(REQUEST).stages
    assert (dense.budget, dense.updates) == (Budget(9, "epochs"), ())
    assert (pruned.budget, pruned.start.kind) == (Budget(50, "steps"), "previous")
    [update] = pruned.updates
    assert (update.at, update.targets, update.scope) == (0.0, {"a": 0.25, "b": 0.5}, None)


def test_the_scope_is_passed_to_the_update() -> None:
    assert OneShot(scope="global").plan(REQUEST).stages[1].updates[0].scope == "global"


def test_before_training_there_is_one_stage_of_the_training_budget() -> None:
    check_schedule(OneShot, when="before", rounds=3)
    [stage] = OneShot(when="before").plan(REQUEST).stages
    assert (stage.budget, stage.start.kind) == (Budget(9, "epochs"), "previous")
    assert [(update.at, update.targets) for update in stage.updates] == [(0.0, {"a": 0.25, "b": 0.5})]


@given(st.floats(0.02, 1), st.integers(1, 200))
def test_rounds_fall_exponentially_at_one_point_to_the_exact_density(target, rounds):
    request = PlanRequest(LAYERS, [Target("a", {"a": target})], Budget(9, "epochs"), Budget(50, "steps"))
    plan = OneShot(rounds=rounds).plan(request)
    check_plan(plan, LAYERS)
    updates = plan.stages[1].updates
    densities = [1.0, *(update.targets["a"] for update in updates)]
    assert {update.at for update in updates} == {0.0}
    assert densities[-1] == target
    fractions = [after / before for before, after in itertools.pairwise(densities)]
    assert fractions == pytest.approx([target ** (1 / rounds)] * rounds)


def test_in_a_run_the_initial_weights_are_pruned_and_kept(toy_run, watch) -> None:
    recipe = {"task": {"name": "watched"}, "structure": "hidden=1/4", "training": {"budget": "10 steps"}}
    schedule = {"name": "one-shot", "when": "before", "rounds": 4}
    finished, prepared, _ = toy_run({**recipe, "schedule": schedule}, [watch])
    assert [event.layers["hidden"].kept for event in watch.events] == [815, 576, 407, 288]
    first = prepared.build_model("initial weights").state_dict()["hidden.weight"]
    started = watch.before[0]["hidden.weight"]
    assert int((started != 0).sum()) == 288
    assert (started[started != 0] == first[started != 0]).all()
    assert first[started == 0].abs().max() <= first[started != 0].abs().min()
    assert len(finished.stages) == 1
