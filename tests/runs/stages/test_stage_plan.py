import pytest

from prunekit.contracts.schedule import Budget, MaskUpdate, Plan, Stage, Start
from prunekit.contracts.training import Training
from prunekit.errors import ConfigError
from prunekit.runs.stages.stage_plan import planned_stages

SETTINGS = Training(decay="constant", retraining_rate=0.1, checkpoint_every=7)
DENSE = Stage("dense", Budget(2, "epochs"))
PRUNED = Stage("pruned", Budget(15, "steps"), (MaskUpdate(0.0, {"fc": 0.5}), MaskUpdate(0.8, {"fc": 0.25})))


def test_segments_end_at_updates_checkpoints_epochs_rewind_points_and_the_end_of_the_stage():
    rewinding = Stage("rewound", Budget(1, "epochs"), start=Start("step", 4))
    dense, pruned, _ = planned_stages(Plan((DENSE, PRUNED, rewinding)), SETTINGS, 10)
    assert [dense.segment_end(step) for step in (0, 4, 7, 10, 14)] == [4, 7, 10, 14, 20]
    assert [pruned.segment_end(step) for step in (0, 7, 10, 12, 14)] == [7, 10, 12, 14, 15]
    assert dense.rewind_points == {4: Start("step", 4)}
    assert [number for number, _ in pruned.updates_at(12)] == [1]


def test_an_epoch_ends_at_the_end_of_a_stage_and_checkpoints_are_written_every_few_steps():
    dense, pruned = planned_stages(Plan((DENSE, PRUNED)), SETTINGS, 10)
    assert [step for step in range(1, 16) if pruned.ends_epoch(step)] == [10, 15]
    assert [step for step in range(1, 21) if dense.saves_after(step)] == [7, 14]


def test_the_end_of_a_stage_is_saved_before_masks_change_there():
    (stage,) = planned_stages(Plan((Stage("all", Budget(5, "steps"), (MaskUpdate(1.0, {"fc": 0.5}),)),)), SETTINGS, 10)
    assert stage.saves_after(5)


@pytest.mark.parametrize(("pruned", "rates"), [(False, [1.0, 0.1]), (True, [0.1, 0.1])])
def test_stages_that_continue_from_trained_weights_use_the_retraining_rate(pruned, rates):
    stages = planned_stages(Plan((DENSE, PRUNED)), SETTINGS, 10, pruned=pruned)
    assert [stage.rate_factor(3) for stage in stages] == rates


def test_a_stage_cannot_start_from_a_step_that_no_earlier_stage_reaches():
    plan = Plan((DENSE, Stage("rewound", Budget(1, "epochs"), start=Start("step", 21))))
    with pytest.raises(ConfigError, match="starts from step 21, but the stages before it have only 20 steps"):
        planned_stages(plan, SETTINGS, 10)
