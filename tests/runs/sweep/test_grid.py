import attrs
import pytest

from prunekit.errors import ConfigError
from prunekit.masks.patterns import Blocks, Units
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.sweep.cells import make_cells
from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.run_tree import stage_runs

RECIPE = {
    "task": {"name": "prunekit.testing:ToyTask"},
    "sweep": {
        "structures": ["hidden=1/4", "hidden=1/4 b=1/2"],
        "criteria": ["magnitude", {"name": "correlation", "mode": "highest"}],
    },
}


def cells_of(recipe, overrides=()):
    manager = make_manager(third_party=False)
    return make_cells(read_grid(recipe, {}, overrides), manager, collect(manager))


def names(cell, seed=0):
    return [run.name for run in stage_runs(cell, seed)]


def with_sweep(**changes):
    return {**RECIPE, "sweep": {**RECIPE["sweep"], **changes}}


def test_the_grid_is_the_dense_network_and_each_combination_with_a_control_for_each_structure():
    assert list(map(str, cells_of(RECIPE))) == [
        "dense",
        "hidden=1/4; magnitude; layerwise",
        "hidden=1/4; correlation (mode=highest); layerwise",
        "control; hidden=1/4",
        "hidden=1/4 b=1/2; magnitude; layerwise",
        "hidden=1/4 b=1/2; correlation (mode=highest); layerwise",
        "control; hidden=1/4 b=1/2",
    ]


def test_an_omitted_axis_has_the_value_of_the_recipe():
    recipe = {**RECIPE, "structure": "a=1/2", "criterion": {"name": "random"}, "sweep": {}}
    assert list(map(str, cells_of(recipe))) == ["dense", "a=1/2; random; layerwise", "control; a=1/2"]
    assert str(cells_of({**RECIPE, "sweep": {"criteria": ["random"]}})[1]) == "hidden=1/4 b=1/2; random; layerwise"


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
def test_runs_that_differ_in_anything_that_counts_have_different_names(override):
    cell = cells_of(RECIPE)[0]
    base = read_grid(RECIPE, {}, [override]).base
    # Given masks would be read when cells are made, so only the configuration is changed.
    changed = attrs.evolve(cell, config=base) if "masks" in override else cells_of(RECIPE, [override])[0]
    assert names(changed, base.seed) != names(cell)


def test_what_a_dense_stage_does_not_use_does_not_change_its_name():
    dense = names(cells_of(RECIPE)[0])
    for override in ("training.retraining=7 steps", "training.retraining_rate=0.1", "criterion.name=random"):
        assert names(cells_of(RECIPE, [override])[0]) == dense
    assert names(cells_of(RECIPE, ["training.retraining_rate=0.1"])[1]) != names(cells_of(RECIPE)[1])


def test_the_control_of_a_structure_trains_through_the_stages_of_the_first_schedule():
    recipe = with_sweep(schedules=["layerwise", {"name": "layerwise", "scratch": "same"}])
    cells = cells_of(recipe)
    control = next(cell for cell in cells if cell.kind == "control")
    assert [stage.updates for stage in control.plan.stages] == [(), ()]
    scratch = next(cell for cell in cells if "scratch" in cell.schedule)
    assert len(scratch.plan.stages) == 4
    assert list(stage_runs(scratch, 0))[1].name == names(cells[1])[1]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "has no section \\[sweep\\]"),
        ({"sweep": {"structure": ["a=1"]}}, "no option 'structure' \\(did you mean 'structures'"),
        (with_sweep(structures="hidden=1/4"), "sweep.structures is 'hidden=1/4', expected a list"),
        (with_sweep(criteria="magnitude"), "sweep.criteria is 'magnitude', expected a list"),
        (with_sweep(criteria=[{"mode": "highest"}]), 'expected "NAME" or {name'),
        (with_sweep(criteria=["magnitude", "magnitude"]), "contains an entry twice: magnitude, magnitude"),
        (with_sweep(criteria=["magnitud"]), "there is no criterion 'magnitud' \\(did you mean 'magnitude'"),
        (with_sweep(structures=["hiden=1/4"]), "hiden"),
        (with_sweep(structures=["hidden=25"]), "for 25 percent write 0.25"),
        (
            {**RECIPE, "criterion": {"name": "correlation", "strength": 0.1}},
            "criterion.strength is set, but sweep.criteria",
        ),
        ({**RECIPE, "dense": True}, "leave out freeze_masks and dense"),
    ],
)
def test_a_wrong_grid_is_refused_before_any_run(recipe, message):
    with pytest.raises(ConfigError, match=message):
        cells_of(recipe)


def test_training_settings_are_an_axis_with_their_own_controls():
    recipe = with_sweep(structures=["hidden=1/4"], criteria=["magnitude"], training=[{}, {"retraining": "9 steps"}])
    assert list(map(str, cells_of(recipe))) == [
        "dense",
        "hidden=1/4; magnitude; layerwise",
        "control; hidden=1/4",
        "hidden=1/4; magnitude; layerwise; retraining=9 steps",
        "control; hidden=1/4; retraining=9 steps",
    ]
    _, one, control, other, other_control = map(names, cells_of(recipe))
    assert one[0] == other[0]
    assert len({one[1], control[1], other[1], other_control[1]}) == 4


ONE_SHOT = {**RECIPE, "schedule": {"name": "one-shot"}, "criterion": {"name": "magnitude"}}


def test_densities_and_distributions_are_axes():
    rules = ["uniform", "erdos-renyi-kernel", "global"]
    cells = cells_of({**ONE_SHOT, "sweep": {"densities": [0.5, "1/8"], "distributions": rules}})
    pruned = [cell for cell in cells if cell.kind == "pruned"]
    assert [(cell.structure, cell.allocation) for cell in pruned] == [
        (f"*={density}", rule) for density in (0.5, 0.125) for rule in rules
    ]
    assert str(cells[1]) == "*=0.5; uniform; magnitude; one-shot"
    assert [cell.config.scope for cell in pruned[:3]] == [None, None, "global"]
    assert [cell.config.distribution for cell in pruned[:3]] == ["uniform", "erdos-renyi-kernel", None]
    assert len({names(cell)[-1] for cell in pruned}) == 6
    controls = [cell for cell in cells if cell.kind == "control"]
    assert len(controls) == 6
    assert len({names(cell)[-1] for cell in controls}) == 1


def test_patterns_are_an_axis():
    cells = cells_of({**ONE_SHOT, "density": 0.5, "sweep": {"patterns": ["none", "units", "4x1"]}})
    pruned = [cell for cell in cells if cell.kind == "pruned"]
    assert [cell.allocation for cell in pruned] == ["none", "units", "4x1"]
    assert [cell.plan.stages[1].updates[0].pattern for cell in pruned] == [None, Units(), Blocks(4, 1)]


def test_patterns_without_settings_are_different_runs():
    recipe = {**ONE_SHOT, "structure": "hidden=0.5", "sweep": {"patterns": ["units", "channels"]}}
    units, channels = (cell for cell in cells_of(recipe) if cell.kind == "pruned")
    assert [stage.name for stage in units.plan.stages] == [stage.name for stage in channels.plan.stages]
    assert units.plan.stages[1].updates[0].targets == channels.plan.stages[1].updates[0].targets
    assert names(units)[0] == names(channels)[0]
    assert names(units)[1] != names(channels)[1]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"structures": ["a=1/2"], "densities": [0.5]}, "both sweep.structures and sweep.densities"),
        ({"densities": [0.5, 0.5]}, "sweep.structures or densities contains an entry twice"),
        ({"densities": [0.5], "patterns": ["units", "units"]}, "distributions or patterns contains .* units, units"),
        ({"densities": [0.5], "distributions": ["erk"]}, "contains 'erk', expected one of uniform, .* global"),
        ({"distributions": ["uniform"]}, "divides one density among the layers, but no density is given"),
        ({"densities": [0.5], "patterns": ["1:4"]}, "pattern 1:4 has density 0.25"),
        ({"densities": [50]}, "for 50 percent write 0.5"),
    ],
)
def test_a_wrong_allocation_is_refused_before_any_run(sweep, message):
    with pytest.raises(ConfigError, match=message):
        cells_of({**ONE_SHOT, "sweep": sweep})
