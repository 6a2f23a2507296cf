import pytest

from prunekit.contracts.schedule import Budget, PlanRequest, Target
from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.schedules.layerwise import Layerwise
from prunekit.testing import check_schedule

LAYERS = [LayerShape(name, "linear", 1, 4, (8,)) for name in ("5a", "5b", "f")]
REQUEST = PlanRequest(
    LAYERS, [Target("f", {"f": 1 / 4}), Target("5b", {"5b": 1 / 2})], Budget(9, "epochs"), Budget(5, "epochs")
)


def test_it_fulfils_the_contract() -> None:
    check_schedule(Layerwise)
    check_schedule(Layerwise, scope="unit")


def test_after_the_dense_stage_each_layer_has_a_stage_in_the_users_order() -> None:
    stages = Layerwise().plan(REQUEST).stages
    assert [stage.name for stage in stages] == ["dense", "f", "5b"]
    assert [stage.budget.amount for stage in stages] == [9, 5, 5]
    assert [[dict(update.targets) for update in stage.updates] for stage in stages] == [
        [],
        [{"f": 0.25}],
        [{"5b": 0.5}],
    ]


def test_layers_of_one_entry_are_pruned_in_one_stage() -> None:
    request = PlanRequest(LAYERS, [Target("5", {"5a": 0.5, "5b": 0.5})], Budget(9, "epochs"), Budget(5, "epochs"))
    stages = Layerwise().plan(request).stages
    assert [(stage.name, [update.targets for update in stage.updates]) for stage in stages] == [
        ("dense", []),
        ("5", [{"5a": 0.5, "5b": 0.5}]),
    ]


def test_every_stage_starts_from_the_weights_of_the_one_before() -> None:
    assert {stage.start.kind for stage in Layerwise().plan(REQUEST).stages} == {"previous"}
    assert all(update.at == 0 for stage in Layerwise().plan(REQUEST).stages for update in stage.updates)


@pytest.mark.parametrize(
    ("scratch", "epochs"), [("none", []), ("retraining", [5, 5]), ("same", [9, 5, 5]), ("long", [9 + 5 + 5])]
)
def test_scratch_trains_the_final_masks_for_the_steps_of_its_choice(scratch, epochs) -> None:
    check_schedule(Layerwise, scratch=scratch)
    stages = Layerwise(scratch=scratch).plan(REQUEST).stages
    assert stages[:3] == Layerwise().plan(REQUEST).stages
    assert [stage.budget.amount for stage in stages[3:]] == epochs
    assert [stage.start.kind for stage in stages[3:]] == ["fresh", "previous", "previous"][: len(epochs)]
    assert not any(stage.updates for stage in stages[3:])


def test_a_long_scratch_stage_cannot_add_steps_to_epochs() -> None:
    request = PlanRequest(LAYERS, REQUEST.entries, Budget(90, "steps"), Budget(5, "epochs"))
    with pytest.raises(ConfigError, match="training takes 90 steps and re-training 5 epochs"):
        Layerwise(scratch="long").plan(request)
