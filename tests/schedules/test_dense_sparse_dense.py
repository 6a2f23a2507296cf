import pytest

from prunekit.contracts.schedule import Budget, PlanRequest, Target
from prunekit.layers.view import LayerShape
from prunekit.schedules.dense_sparse_dense import DenseSparseDense
from prunekit.testing import check_schedule

REQUEST = PlanRequest(
    [LayerShape("a", "linear", 1, 4, (8,))], [Target("a", {"a": 0.5})], Budget(9, "epochs"), Budget(50, "steps")
)


def test_it_fulfils_the_contract() -> None:
    check_schedule(DenseSparseDense)
    check_schedule(DenseSparseDense, scope="global")


def test_it_prunes_after_training_and_restores_connections_after_retraining() -> None:
    dense, sparse, again = DenseSparseDense().plan(REQUEST).stages
    assert [stage.budget for stage in (dense, sparse, again)] == [Budget(9, "epochs"), *[Budget(50, "steps")] * 2]
    assert (sparse.updates[0].targets, sparse.rate) == ({"a": 0.5}, None)
    assert (again.updates[0].reopens, again.updates[0].targets, again.rate) == (True, {"a": 1.0}, 0.1)


def test_in_a_run_it_ends_dense_after_steps_at_the_lower_rate(toy_run, watch) -> None:
    recipe = {
        "task": {"name": "watched"},
        "structure": "hidden=1/4 conv_b=1/2",
        "training": {"budget": "20 steps", "retraining": "10 steps"},
        "schedule": {"name": "dense-sparse-dense"},
    }
    finished, _, _ = toy_run(recipe, [watch])
    assert [stage.kept["hidden"] for stage in finished.stages] == [1152, 288, 1152]
    assert watch.rates == pytest.approx({0: 0.05, 1: 0.05, 2: 0.005})
    started = watch.before[2]["hidden.weight"]
    assert int((started != 0).sum()) == 288
    assert int((watch.after[2, 10]["hidden.weight"] != 0).sum()) > 1000
