import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, Grow, MaskUpdate, Plan, Stage, check_density, check_plan
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.masks.selection import Blocks, NofM

LAYERS = (LayerShape("a", "linear", 1, 4, (8,)), LayerShape("b", "convolution", 2, 4, (3, 3, 3)))
EPOCH = Budget(1, "epochs")


def plan_of(*updates):
    return Plan((Stage("dense", EPOCH), Stage("pruned", EPOCH, updates)))


@given(st.integers(0, 10**6), st.sampled_from(["steps", "epochs"]))
def test_a_printed_budget_parses_to_the_same_budget(amount, unit):
    budget = Budget(amount, unit)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "3", "epochs", "-1 steps", "1.5 epochs", "3 days"])
def test_a_malformed_budget_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="expected for example '600 steps'"):
        Budget.parse(text)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, 90, math.nan, math.inf])
def test_a_density_outside_the_interval_is_refused(density):
    with pytest.raises(ConfigError, match="outside"):
        check_density(density, "layer 'f'")


def test_a_percentage_is_recognised():
    with pytest.raises(ConfigError, match=r"layer 'f': density 90 is outside \(0, 1\]; for 90 percent write 0.9"):
        check_density(90, "layer 'f'")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(()), "no stage"),
        (plan_of(MaskUpdate(0, {"c": 0.5})), "prunes an unknown layer 'c'"),
        (plan_of(MaskUpdate(0, {"a": 0})), "outside"),
        (plan_of(MaskUpdate(0.5, {"a": 0.5}), MaskUpdate(0.2, {"b": 0.5})), "ascending fractions"),
        (plan_of(MaskUpdate(1.5, {"a": 0.5})), "ascending fractions"),
        (plan_of(MaskUpdate(0, {"a": 0.2}), MaskUpdate(0.5, {"a": 0.5})), "rises from 0.2 to 0.5"),
        (plan_of(MaskUpdate(0, {"a": 0.2}, scope="global", grow=Grow("random", 0.1))), "grow"),
        (plan_of(MaskUpdate(0, {"a": 0.2}, grow=Grow("random", 1.5))), "fraction"),
        (plan_of(MaskUpdate(0, {"a": 1.0}, None, NofM(2, 4), Grow("random", 0.5))), "grow"),
        (Plan((Stage("hot", EPOCH, rate=-1.0),)), "factor on the learning rates is -1"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(plan, words):
    with pytest.raises(ConfigError, match=words):
        check_plan(plan, LAYERS)


def test_a_valid_plan_with_growth_passes():
    check_plan(plan_of(MaskUpdate(0, {"a": 0.2}), MaskUpdate(0.5, {"a": 0.5, "b": 0.1}, grow=Grow("gradient"))), LAYERS)


@pytest.mark.parametrize(("scope", "pattern"), [("global", None), (None, NofM(2, 4)), ("unit", Blocks(4, 4))])
def test_all_connections_may_come_back_in_any_scope_and_pattern(scope, pattern):
    update = MaskUpdate(0.5, {"a": 1.0, "b": 1.0}, scope, pattern, Grow("random"))
    assert update.reopens
    check_plan(plan_of(MaskUpdate(0, {"a": 0.5, "b": 0.5}), update), LAYERS)


def test_a_plan_lists_the_layers_ranked_by_the_training_of_a_stage():
    first = MaskUpdate(0.0, {"a": 0.5}, by="random")
    within, back, after = MaskUpdate(0.5, {"b": 0.5}), MaskUpdate(0.9, {"a": 1.0}, grow=Grow("random")), {"a": 0.2}
    stages = (Stage("0", EPOCH), Stage("1", EPOCH, (first, within, back)), Stage("2", EPOCH, (MaskUpdate(0, after),)))
    plan = Plan(stages)
    assert [plan.ranked_by(stage) for stage in range(3)] == [("b",), ("b", "a"), ("a",)]


def test_a_layer_shape_counts_its_weights():
    assert LAYERS[1].fan == 27
    assert LAYERS[1].weights == 2 * 4 * 27
