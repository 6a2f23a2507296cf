import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, PlanRequest, Start, Target, check_plan
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.schedules.iterative import Iterative
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 40, (80,)), LayerShape("b", "linear", 1, 40, (80,))]
RECIPE = {"structure": "hidden=1/4 conv_b=1/2", "training": {"budget": "20 steps", "retraining": "6 steps"}}


def request(a: float = 0.25, b: float = 0.5) -> PlanRequest:
    return PlanRequest(LAYERS, [Target("a", {"a": a}), Target("b", {"b": b})], Budget(90, "steps"), Budget(50, "steps"))


@pytest.mark.parametrize("rewind", ["initial", "step", "rate", "none"])
def test_it_fulfils_the_contract(rewind: str) -> None:
    check_schedule(Iterative, rewind=rewind, step=10, scope="global")


@pytest.mark.parametrize(
    ("rewind", "budget", "start", "rate"),
    [
        ("initial", 90, Start("initial"), None),
        ("step", 90, Start("step", 12), None),
        ("rate", 90, Start("previous"), 1.0),
        ("none", 50, Start("previous"), None),
    ],
)
def test_each_kind_of_rewinding_has_its_start_budget_and_rate(rewind, budget, start, rate) -> None:
    dense, *rounds = Iterative(rewind=rewind, step=12, rounds=2).plan(request()).stages
    assert (dense.budget, dense.updates) == (Budget(90, "steps"), ())
    assert [stage.name for stage in rounds] == ["round 1", "round 2"]
    for stage in rounds:
        assert (stage.budget.amount, stage.start, stage.rate) == (budget, start, rate)


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(1, 30))
def test_each_round_keeps_the_same_fraction_and_the_last_is_exact(a, b, rounds):
    plan = Iterative(rounds=rounds).plan(request(a, b))
    check_plan(plan, LAYERS)
    updates = [update for stage in plan.stages for update in stage.updates]
    assert updates[-1].targets == {"a": a, "b": b}
    for name in ("a", "b"):
        densities = [1.0, *(update.targets[name] for update in updates)]
        fractions = [after / before for before, after in itertools.pairwise(densities)]
        assert fractions == pytest.approx([fractions[0]] * rounds)
        assert densities == sorted(densities, reverse=True)


def test_a_step_after_the_dense_stage_is_refused_in_the_plan() -> None:
    with pytest.raises(ConfigError, match=r"schedule.step is 91, but the dense stage takes 90 steps"):
        Iterative(rewind="step", step=91).plan(request())


@pytest.mark.parametrize("rewind", ["initial", "step"])
def test_kept_weights_are_rewound_to_the_last_bit(toy_run, watch, rewind) -> None:
    schedule = {"name": "iterative", "rounds": 3, "rewind": rewind, "step": 7}
    _, prepared, _ = toy_run({**RECIPE, "task": {"name": "watched"}, "schedule": schedule}, [watch])
    first = prepared.build_model("initial weights").state_dict() if rewind == "initial" else watch.after[0, 7]
    for stage, event in enumerate(watch.events, 1):
        for name, weight in first.items():
            started = watch.before[stage][name]
            layer = event.layers.get(name.removesuffix(".weight"))
            kept = started != 0 if layer else torch.ones_like(started, dtype=torch.bool)
            assert layer is None or int(kept.sum()) == layer.kept
            assert torch.equal(started[kept], weight[kept])
    assert len(watch.events) == 3
    assert max(step for stage, step in watch.after if stage == 3) == 20


def test_rate_rewinding_continues_from_the_weights_at_the_full_rate(toy_run, watch) -> None:
    training = {"budget": "10 steps", "retraining": "6 steps", "retraining_rate": 0.1, "decay": "constant"}
    schedule = {"name": "iterative", "rounds": 2, "rewind": "rate"}
    toy_run({**RECIPE, "task": {"name": "watched"}, "training": training, "schedule": schedule}, [watch])
    assert watch.rates == pytest.approx({0: 0.05, 1: 0.05, 2: 0.05})
    trained, started = watch.after[0, 10]["hidden.weight"], watch.before[1]["hidden.weight"]
    assert torch.equal(started, trained * (started != 0))
    assert max(step for stage, step in watch.after if stage == 2) == 10


def test_fine_tuning_rounds_use_the_retraining_budget_and_rate(toy_run, watch) -> None:
    training = {"budget": "10 steps", "retraining": "6 steps", "retraining_rate": 0.1, "decay": "constant"}
    schedule = {"name": "iterative", "rounds": 2, "rewind": "none"}
    toy_run({**RECIPE, "task": {"name": "watched"}, "training": training, "schedule": schedule}, [watch])
    assert watch.rates == pytest.approx({0: 0.05, 1: 0.005, 2: 0.005})
    assert max(step for stage, step in watch.after if stage == 2) == 6
