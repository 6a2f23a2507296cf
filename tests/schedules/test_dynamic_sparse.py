import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, PlanRequest, Target, check_plan
from prunekit.contracts.seeds import Seeds
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.masks.masks import load_masks
from prunekit.schedules.dynamic_sparse import RigL, SparseEvolutionary
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 40, (80,)), LayerShape("b", "linear", 1, 40, (80,))]
SCHEDULES = [SparseEvolutionary, RigL]
RECIPE = {"structure": "hidden=1/4 conv_b=1/2 conv_a=1", "task": {"name": "watched"}}


def request(a: float = 0.25, b: float = 0.5) -> PlanRequest:
    return PlanRequest(LAYERS, [Target("a", {"a": a}), Target("b", {"b": b})], Budget(90, "steps"), Budget(50, "steps"))


@pytest.mark.parametrize("cls", SCHEDULES)
def test_they_fulfil_the_contract(cls) -> None:
    check_schedule(cls)
    check_schedule(cls, updates=1, drop=0.9, end=0.5)


def test_the_fraction_that_rigl_exchanges_follows_the_published_formula() -> None:
    [stage] = RigL(updates=9, drop=0.4, end=0.8).plan(request()).stages
    first, *exchanges = stage.updates
    assert (first.at, first.by, first.grow, first.targets) == (0.0, "random", None, {"a": 0.25, "b": 0.5})
    assert [update.at for update in exchanges] == pytest.approx([0.08 * number for number in range(1, 10)])
    for update in exchanges:
        assert (update.grow.by, update.targets) == ("gradient", {"a": 0.25, "b": 0.5})
        # Evci et al., section 3: f_decay(t; alpha, T_end) = alpha / 2 (1 + cos(t pi / T_end)).
        assert update.grow.fraction == pytest.approx(0.4 / 2 * (1 + math.cos(update.at * math.pi / 0.8)))


def test_set_exchanges_the_same_fraction_each_time_at_random() -> None:
    [stage] = SparseEvolutionary(updates=4).plan(request()).stages
    first, *exchanges = stage.updates
    assert (first.by, first.grow) == ("random", None)
    assert [(update.grow.by, update.grow.fraction) for update in exchanges] == [("random", 0.3)] * 4
    assert [update.at for update in exchanges] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@given(
    st.sampled_from(SCHEDULES),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.integers(1, 60),
    st.floats(0, 0.99),
    st.floats(0.01, 1),
)
def test_densities_are_constant_and_points_ascend_over_the_updates(cls, a, b, updates, drop, end):
    plan = cls(updates=updates, drop=drop, end=end).plan(request(a, b))
    check_plan(plan, LAYERS)
    first, *exchanges = plan.stages[0].updates
    assert first.targets == {"a": a, "b": b}
    points = [update.at for update in exchanges]
    assert points == sorted(points)
    assert all(0 < at < end for at in points)
    for update in exchanges:
        assert update.targets.items() <= first.targets.items()
        assert max(update.targets.values()) < 1
        assert 0 <= update.grow.fraction <= drop


@pytest.mark.parametrize("cls", SCHEDULES)
def test_an_end_of_zero_is_refused(cls) -> None:
    with pytest.raises(ConfigError, match=r"schedule.end is 0"):
        cls(end=0.0).plan(request())


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_in_a_run_the_counts_are_the_same_after_every_update_and_step(toy_run, watch, name) -> None:
    _, _, folder = toy_run({**RECIPE, "schedule": {"name": name, "updates": 5}}, [watch])
    assert len(watch.events) == 6
    assert [event.layers["hidden"].kept for event in watch.events] == [288] * 6
    assert [event.layers["conv_b"].kept for event in watch.events] == [144] * 6
    # A weight that has just grown is 0 until the first gradient reaches it, so nonzero ones are at most as many.
    for tensors in watch.after.values():
        assert int((tensors["hidden.weight"] != 0).sum()) <= 288
        assert int((tensors["conv_a.weight"] != 0).sum()) == 72
    before, after = watch.before[0]["hidden.weight"] != 0, load_masks(folder.masks).tensors["hidden.weight"]
    assert int(after.sum()) == int(before.sum()) == 288
    assert int((before & ~after).sum()) > 20


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_the_first_mask_is_drawn_at_random_and_keeps_the_initial_weights(toy_run, watch, name) -> None:
    _, prepared, _ = toy_run({**RECIPE, "schedule": {"name": name, "updates": 1}}, [watch])
    first = prepared.build_model("initial weights").state_dict()["hidden.weight"]
    started = watch.before[0]["hidden.weight"]
    kept = started != 0
    assert torch.equal(started[kept], first[kept])
    # Drawn at random, the kept have the mean size of all; the largest quarter would have 1.75 times that.
    assert float(first[kept].abs().mean() / first.abs().mean()) == pytest.approx(1, abs=0.15)


def test_rigl_grows_where_the_dense_gradient_is_largest(toy_run, watch) -> None:
    recipe = {**RECIPE, "structure": "hidden=1/4", "schedule": {"name": "rigl", "updates": 1, "drop": 0.6}}
    recipe["training"] = {"budget": "8 steps"}
    _, prepared, folder = toy_run(recipe, [watch])
    [step] = [event.step for event in watch.events if event.step > 0]
    model = prepared.build_model("initial weights")
    model.load_state_dict(watch.after[0, step])
    weight = watch.after[0, step]["hidden.weight"]
    task = prepared.task
    total = torch.zeros_like(weight)
    seeds = Seeds(Seeds(0).derive("data", 0))
    for index in range(len(task.batches("calibration", 0, seeds))):
        model.zero_grad()
        task.loss(model, task.batches("train", 0, seeds)[index]).backward()
        total += model.hidden.weight.grad
    # drop = 0.6 at t = 0, f at t = 0.375 of 0.75 is half of it.
    pruned = torch.zeros(1152, dtype=torch.bool)
    pruned[weight.abs().flatten().argsort(descending=True)[: round(288 * 0.7)]] = True
    wish = total.abs().flatten().masked_fill(pruned, -1)
    expected = pruned.clone()
    expected[wish.argsort(descending=True)[: 288 - int(pruned.sum())]] = True
    assert torch.equal(load_masks(folder.masks).tensors["hidden.weight"].flatten(), expected)
