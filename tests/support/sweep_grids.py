"""A small sweep, and what is made from its recipe: cells, and the names of their runs."""

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
ONE_SHOT = {**RECIPE, "schedule": {"name": "one-shot"}, "criterion": {"name": "magnitude"}}


def cells_of(recipe, overrides=()):
    manager = make_manager(third_party=False)
    return make_cells(read_grid(recipe, {}, overrides), manager, collect(manager))


def names(cell, seed=0):
    return [run.name for run in stage_runs(cell, seed)]


def with_sweep(**changes):
    return {**RECIPE, "sweep": {**RECIPE["sweep"], **changes}}
