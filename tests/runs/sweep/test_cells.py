"""The cells of a grid: their order, their controls and their configurations."""

from sweep_grids import ONE_SHOT, RECIPE, cells_of, names, with_sweep

from prunekit.masks.patterns import Blocks, Units
from prunekit.runs.sweep.run_tree import stage_runs


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


def test_the_control_of_a_structure_trains_through_the_stages_of_the_first_schedule():
    recipe = with_sweep(schedules=["layerwise", {"name": "layerwise", "scratch": "same"}])
    cells = cells_of(recipe)
    control = next(cell for cell in cells if cell.kind == "control")
    assert [stage.updates for stage in control.plan.stages] == [(), ()]
    scratch = next(cell for cell in cells if "scratch" in cell.schedule)
    assert len(scratch.plan.stages) == 4
    assert list(stage_runs(scratch, 0))[1].name == names(cells[1])[1]


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
