import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.contracts.schedule import Budget, PlanRequest, Target, check_plan
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.schedules.ac_dc import AlternatingCompression
from prunekit.testing import check_schedule

LAYERS = [LayerShape("a", "linear", 1, 40, (80,)), LayerShape("b", "linear", 1, 40, (80,))]
WANTED = {"a": 0.25, "b": 0.5}
REQUEST = PlanRequest(
    LAYERS, [Target("a", {"a": 0.25}), Target("b", {"b": 0.5})], Budget(100, "epochs"), Budget(5, "epochs")
)


@pytest.mark.parametrize("options", [{}, {"phases": 1}, {"scope": "global"}, {"warmup": 0.0, "final": 0.0}])
def test_it_fulfils_the_contract(options) -> None:
    check_schedule(AlternatingCompression, **options)


@given(st.integers(1, 40), st.floats(0, 0.45), st.floats(0, 0.45))
def test_phases_alternate_have_one_length_and_end_compressed(phases, warmup, final):
    plan = AlternatingCompression(phases=phases, warmup=warmup, final=final).plan(REQUEST)
    check_plan(plan, LAYERS)
    [stage] = plan.stages
    assert stage.budget == REQUEST.training
    assert len(stage.updates) == 2 * phases - 1
    for number, update in enumerate(stage.updates):
        assert update.reopens == bool(number % 2)
        assert update.targets == ({"a": 1.0, "b": 1.0} if number % 2 else WANTED)
    points = [update.at for update in stage.updates]
    assert points[-1] == pytest.approx(1 - final)
    lengths = [after - before for before, after in itertools.pairwise(points)]
    assert lengths == pytest.approx([(1 - final - warmup) / max(2 * phases - 2, 1)] * len(lengths))
    assert phases == 1 or points[0] == warmup


@pytest.mark.parametrize(("warmup", "final"), [(0.6, 0.5), (0.5, 0.5)])
def test_settings_without_room_for_the_phases_are_refused(warmup, final) -> None:
    with pytest.raises(ConfigError, match="leave no room for 8 compressed phases"):
        AlternatingCompression(warmup=warmup, final=final).plan(REQUEST)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_in_a_run_all_connections_come_back_from_zero_and_it_ends_compressed(toy_run, watch, scope) -> None:
    recipe = {
        "task": {"name": "watched"},
        "structure": "hidden=1/4 conv_b=1/2",
        "training": {"budget": "20 steps"},
        "schedule": {"name": "ac-dc", "phases": 3, "scope": scope},
    }
    finished, _, _ = toy_run(recipe, [watch])
    kept = [sum(layer.kept for layer in event.layers.values()) for event in watch.events]
    assert kept == [432, 1440, 432, 1440, 432]
    assert finished.stages[-1].kept["hidden"] + finished.stages[-1].kept["conv_b"] == 432
    back = watch.events[1].step
    compressed, opened = watch.after[0, back]["hidden.weight"], watch.after[0, back + 1]["hidden.weight"]
    assert int((compressed != 0).sum()) == watch.events[0].layers["hidden"].kept
    grown = opened[compressed == 0]
    assert grown.any()
    # One step away from zero.
    assert float(grown.abs().max()) < 0.05
    assert not torch.equal(grown, torch.zeros_like(grown))
