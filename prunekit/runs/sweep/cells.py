"""Combine the axes of a grid into cells, and check each of them like a run.

A cell is one row of the table of results: a structure, a criterion, a schedule and training settings. This module must
not train, and reads no data except what the task reads in its ``setup``.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import attrs

from prunekit.contracts.schedule import Plan
from prunekit.plugins.manager import PluginManager
from prunekit.plugins.registry import Registry
from prunekit.runs.config import Choice, RunConfig
from prunekit.runs.preparation import PreparedRun, prepare
from prunekit.runs.sweep.grid import Allocation, Grid, label


@attrs.frozen
class Cell:
    """One row of the table of results.

    Attributes:
        kind: "dense" (the first stage only), "control" (as many steps as a pruned cell, without pruning) or "pruned".
        structure: as in the recipe; "*=DENSITY" for one density; "" for the dense network.
        criterion: name and options as text; "" if nothing is pruned.
        schedule: name and options as text; "" if nothing is pruned.
        training: settings that differ from the recipe's, as text.
        config: the configuration of its run with the first seed.
        plan: its stages.
        traced: whether the criterion ranks by sums over training steps.
        allocation: how the density is distributed, as text; "" if the sweep does not vary it, and for the dense
            network.
    """

    kind: str
    structure: str
    criterion: str
    schedule: str
    training: str
    config: RunConfig
    plan: Plan
    traced: bool = False
    allocation: str = ""

    def __str__(self) -> str:
        kind = "" if self.kind == "pruned" else self.kind
        parts = (kind, self.structure, self.allocation, self.criterion, self.schedule, self.training)
        return "; ".join(filter(None, parts))


@attrs.frozen
class _Combination:
    """One entry of each axis."""

    kind: str
    structure: str | float | None
    allocation: Allocation
    training: Mapping[str, Any]
    schedule: Choice
    criterion: Choice

    def config(self, base: RunConfig) -> RunConfig:
        """Return the configuration of its run."""
        changed: dict[str, Any] = self.allocation.changes(base)
        if self.structure is not None:
            changed |= dict.fromkeys(("structure", "density"))
            changed["structure" if isinstance(self.structure, str) else "density"] = self.structure
        return attrs.evolve(
            base,
            **changed,
            criterion=self.criterion,
            schedule=self.schedule,
            training={**base.training, **self.training},
            dense=self.kind != "pruned",
        )

    def cell(self, prepared: PreparedRun, config: RunConfig) -> Cell:
        """Return the row of the table."""
        pruned, dense = self.kind == "pruned", self.kind == "dense"
        return Cell(
            kind=self.kind,
            structure="" if dense else config.structure_text or prepared.task.structure,
            criterion=label(self.criterion) if pruned else "",
            schedule=label(self.schedule) if pruned else "",
            training=label(self.training),
            config=config,
            plan=Plan(prepared.plan.stages[: 1 if dense else None]),
            traced="training" in prepared.make_criterion().needs,
            allocation="" if dense else str(self.allocation),
        )


def make_cells(grid: Grid, manager: PluginManager, registry: Registry) -> list[Cell]:
    """Return the cells of a grid, each checked like a run; a control follows the cells that it is compared with.

    Raises:
        PrunekitError: see ``prunekit.runs.preparation.prepare``.
    """
    cells: list[Cell] = []
    prepared: PreparedRun | None = None
    for combination in _combinations(grid):
        config = combination.config(grid.base)
        prepared = prepare(config, manager, registry, device="meta", like=prepared)
        cells.append(combination.cell(prepared, config))
    return cells


def _combinations(grid: Grid) -> Iterator[_Combination]:
    first = grid.schedules[0], grid.criteria[0]
    yield _Combination("dense", grid.structures[0], grid.allocations[0], grid.training[0], *first)
    for structure, allocation, training in product(grid.structures, grid.allocations, grid.training):
        for schedule, criterion in product(grid.schedules, grid.criteria):
            yield _Combination("pruned", structure, allocation, training, schedule, criterion)
        yield _Combination("control", structure, allocation, training, *first)
