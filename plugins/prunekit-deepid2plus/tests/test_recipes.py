"""The recipes of the reference task, which take too long to run in a test, are at least sound."""

from pathlib import Path

import pytest

from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config, read_recipe
from prunekit.runs.sweep.cells import Cell, make_cells
from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.run_tree import stage_runs

EXAMPLES = Path(__file__).parents[3] / "examples"


def cells_of(name: str) -> list[Cell]:
    manager = make_manager()
    return make_cells(read_grid(read_recipe(EXAMPLES / f"{name}.toml")), manager, collect(manager))


@pytest.mark.parametrize(
    ("name", "rows", "runs"),
    # structure: dense, 5 pruned, 3 of the dense network for 1, 2 and 3 stages more
    # selection: dense, 3 structures of 4 criteria, the same 3
    # initialisation: dense, 3 pruned, 3 dense; under the final masks 3 stages, 1 + 3, and 1
    [("table-structure", 1 + 5 + 5, 9), ("table-selection", 1 + 12 + 3, 16), ("table-initialisation", 1 + 4 + 1, 15)],
)
def test_the_tables_have_the_rows_of_the_paper_and_share_their_stages(name: str, rows: int, runs: int) -> None:
    cells = cells_of(name)
    assert len(cells) == rows
    assert len({node.name for cell in cells for node in stage_runs(cell, 0)}) == runs


def test_the_tables_share_their_dense_networks_and_the_criterion_of_the_paper() -> None:
    structure, selection, initialisation = (
        {node.name for cell in cells_of(f"table-{name}") for node in stage_runs(cell, 0)}
        for name in ("structure", "selection", "initialisation")
    )
    # The dense network, three stages of it and three of the network that correlation prunes.
    assert len(structure & selection) == 7
    assert len(structure & initialisation) == 7


def test_the_recipe_of_the_paper_is_its_network_at_full_size() -> None:
    manager = make_manager()
    prepared = prepare(build_config(read_recipe(EXAMPLES / "paper.toml")), manager, collect(manager), device="meta")
    assert sum(layer.weights for layer in prepared.layers) == 17_828_544
    assert [stage.name for stage in prepared.plan.stages] == ["dense", "f", "local5b", "conv4b"]
    assert prepared.training.precision == "bf16"
