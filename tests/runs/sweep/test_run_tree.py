"""The tree of runs: cells share stages, and a run's name depends on what affects its results."""

import attrs
import pytest
from sweep_grids import ONE_SHOT, RECIPE, cells_of, names

from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.run_tree import stage_runs


def test_cells_share_the_runs_of_the_stages_that_they_have_in_common():
    dense, one, other, control, longer, longer_other, longer_control = map(names, cells_of(RECIPE))
    assert dense == one[:1] == other[:1] == control[:1] == longer_control[:1]
    assert one == longer[:2]
    assert control == longer_control[:2]
    assert len({*dense, *one, *other, *control, *longer, *longer_other, *longer_control}) == 7


def test_a_run_continues_the_run_before_it():
    runs = list(stage_runs(cells_of(RECIPE)[4], 3))
    assert [run.parent for run in runs] == [None, runs[0].name, runs[1].name]
    assert [run.stages for run in runs] == [1, 2, 3]
    assert [run.layers for run in runs] == [(), ("hidden",), ("conv_b",)]
    assert {run.config.seed for run in runs} == {3}


@pytest.mark.parametrize(
    "override", ["task.noise=0.5", "training.budget=9 steps", "training.warmup=0.5", "seed=4", "masks=x.safetensors"]
)
def test_runs_with_different_results_have_different_names(override):
    cell = cells_of(RECIPE)[0]
    base = read_grid(RECIPE, {}, [override]).base
    # make_cells would read the masks, so only the configuration is changed.
    changed = attrs.evolve(cell, config=base) if "masks" in override else cells_of(RECIPE, [override])[0]
    assert names(changed, base.seed) != names(cell)


def test_settings_that_a_dense_stage_does_not_use_do_not_change_its_name():
    dense = names(cells_of(RECIPE)[0])
    for override in ("training.retraining=7 steps", "training.retraining_rate=0.1", "criterion.name=random"):
        assert names(cells_of(RECIPE, [override])[0]) == dense
    assert names(cells_of(RECIPE, ["training.retraining_rate=0.1"])[1]) != names(cells_of(RECIPE)[1])


def test_patterns_without_settings_are_different_runs():
    recipe = {**ONE_SHOT, "structure": "hidden=0.5", "sweep": {"patterns": ["units", "channels"]}}
    units, channels = (cell for cell in cells_of(recipe) if cell.kind == "pruned")
    assert [stage.name for stage in units.plan.stages] == [stage.name for stage in channels.plan.stages]
    assert units.plan.stages[1].updates[0].targets == channels.plan.stages[1].updates[0].targets
    assert names(units)[0] == names(channels)[0]
    assert names(units)[1] != names(channels)[1]
