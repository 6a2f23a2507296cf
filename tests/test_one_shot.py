from prunekit.builtin.one_shot import OneShot
from prunekit.layers import LayerShape
from prunekit.schedules import Budget, Entry, PlanRequest
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 4, (8,)), LayerShape("b", "linear", 1, 4, (8,))]
REQUEST = PlanRequest(
    LAYERS, [Entry("b", {"b": 0.5}), Entry("a", {"a": 0.25})], Budget(9, "epochs"), Budget(50, "steps")
)


def test_it_keeps_the_contract() -> None:
    check_schedule(OneShot)
    check_schedule(OneShot, scope="global")


def test_all_layers_are_pruned_at_the_start_of_one_stage_after_dense_training() -> None:
    dense, pruned = OneShot().plan(REQUEST).stages
    assert (dense.budget, dense.updates) == (Budget(9, "epochs"), ())
    assert (pruned.budget, pruned.start.kind) == (Budget(50, "steps"), "previous")
    [update] = pruned.updates
    assert (update.at, update.targets, update.scope) == (0.0, {"a": 0.25, "b": 0.5}, None)


def test_the_scope_reaches_the_update() -> None:
    assert OneShot(scope="global").plan(REQUEST).stages[1].updates[0].scope == "global"
