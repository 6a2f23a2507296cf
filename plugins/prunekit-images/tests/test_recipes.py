"""The recipes of comparisons, which take too long to run in a test, are at least sound."""

from pathlib import Path

from prunekit.config import read_recipe
from prunekit.grid import chain, make_cells, read_sweep
from prunekit.plugins import make_manager
from prunekit.registry import collect

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_comparison_of_criteria_shares_its_dense_network_and_one_control() -> None:
    manager = make_manager()
    sweep = read_sweep(read_recipe(EXAMPLES / "mnist-criteria.toml"))
    cells = make_cells(sweep, manager, collect(manager))
    pruned = len(sweep.structures) * len(sweep.criteria)
    assert [cell.kind for cell in cells].count("pruned") == pruned
    assert len({node.name for cell in cells for node in chain(cell, 0)}) == 1 + pruned + 1
