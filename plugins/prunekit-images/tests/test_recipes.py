"""The recipes of comparisons, which take too long to run in a test, are at least sound."""

from pathlib import Path

import pytest

from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.recipes import read_recipe
from prunekit.runs.sweep.cells import Cell, make_cells
from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.run_tree import stage_runs

EXAMPLES = Path(__file__).parents[3] / "examples"


def cells_of(name: str) -> list[Cell]:
    manager = make_manager()
    return make_cells(read_grid(read_recipe(EXAMPLES / f"{name}.toml")), manager, collect(manager))


@pytest.mark.parametrize(("name", "densities", "methods"), [("criteria", 3, 11), ("densities", 3, 3)])
def test_every_method_is_compared_at_every_density_with_one_control(name: str, densities: int, methods: int) -> None:
    cells = cells_of(f"mnist-{name}")
    assert [cell.kind for cell in cells].count("pruned") == densities * methods
    controls = {list(stage_runs(cell, 0))[-1].name for cell in cells if cell.kind == "control"}
    assert len(controls) == 1


def test_criteria_start_from_one_dense_network_but_movement_watches_its_own_being_trained() -> None:
    starts: dict[str, set[str]] = {}
    for cell in cells_of("mnist-criteria"):
        starts.setdefault(next(stage_runs(cell, 0)).name, set()).add(cell.config.criterion.name)
    shared, own = sorted(starts.values(), key=len, reverse=True)
    assert own == {"movement"}
    assert len(shared) == 10


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("mnist-*.toml")))
def test_a_recipe_on_mnist_makes_cells_that_prune_lenet_300_100(name: str) -> None:
    pruned = [cell for cell in cells_of(name) if cell.kind == "pruned"]
    assert pruned
    for cell in pruned:
        reached = [set(update.targets) for stage in cell.plan.stages for update in stage.updates]
        assert set.union(*reached) == {"fc1", "fc2", "fc3"}
