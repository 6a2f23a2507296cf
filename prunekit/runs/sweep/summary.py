"""Summarise a sweep: the metrics of each cell over the seeds, and paired differences between cells.

It gets the outcomes of the runs and must not know how runs are carried out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import cattrs

from prunekit.errors import ConfigError, nearest
from prunekit.pruning.structure_text import parse_structure
from prunekit.runs.sweep.cells import Cell
from prunekit.runs.sweep.grid import Grid
from prunekit.runs.sweep.intervals import CONFIDENCE, Mean, mean_of
from prunekit.runs.sweep.outcome import Outcome
from prunekit.runs.sweep.run_tree import stage_runs

_AXES = ("criterion", "schedule", "training", "allocation", "structure")


@attrs.frozen
class Row:
    """One cell over all seeds.

    Attributes:
        kind: "dense", "control" or "pruned".
        structure: as in the recipe; "" for the dense network.
        criterion: name and options; "" if nothing is pruned.
        schedule: name and options; "" if nothing is pruned.
        training: settings that differ from the recipe's.
        stages: number of stages.
        kept: kept weights.
        weights: prunable weights.
        metrics: name -> mean over the seeds.
        by_seed: name -> the value for each seed, in the order of the seeds.
        correlation_before: mean absolute correlation of the connections that the last stage's pruning kept, before
            retraining; ``None`` if the stage pruned nothing, or if it was not requested.
        correlation_after: the same connections after retraining.
        allocation: how the density is distributed; "" if the sweep does not vary it.
    """

    kind: str
    structure: str
    criterion: str
    schedule: str
    training: str
    stages: int
    kept: int
    weights: int
    metrics: Mapping[str, Mean]
    by_seed: Mapping[str, tuple[float, ...]]
    correlation_before: Mean | None
    correlation_after: Mean | None
    allocation: str = ""

    @property
    def weights_left(self) -> float:
        """Kept / prunable weights, biases not counted: the paper's compression ratio."""
        return self.kept / self.weights


@attrs.frozen
class PairedComparison:
    """The differences between two cells within each seed.

    Attributes:
        question: the two sides, as "FIRST - SECOND" in words.
        first: index of the row that is subtracted from.
        second: index of the row that is subtracted.
        differences: metric -> mean over the seeds of first - second.
    """

    question: str
    first: int
    second: int
    differences: Mapping[str, Mean]


@attrs.frozen
class Summary:
    """The results of a sweep.

    Attributes:
        seeds: in ascending order.
        metrics: the compared metrics, the most informative one first.
        confidence: probability with which an interval contains the true mean.
        rows: one per cell.
        comparisons: in the order of the rows.
    """

    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    confidence: float
    rows: tuple[Row, ...]
    comparisons: tuple[PairedComparison, ...]


def summarise(grid: Grid, cells: Sequence[Cell], seeds: Sequence[int], outcomes: Mapping[str, Outcome]) -> Summary:
    """Return the metrics of all cells and their differences.

    Args:
        grid: names the metrics to compare; if it names none, all metrics of the task.
        cells: the rows; the first is the dense network.
        seeds: in ascending order.
        outcomes: by name of the run; all contain the metrics that the grid names.
    """
    metrics = grid.metrics or tuple(next(iter(outcomes.values())).metrics)
    rows = tuple(_row(cell, seeds, outcomes) for cell in cells)
    comparisons = tuple(
        PairedComparison(
            question, first, second, {name: _difference(rows[first], rows[second], name) for name in metrics}
        )
        for question, first, second in _questions(cells)
    )
    return Summary(tuple(seeds), tuple(metrics), CONFIDENCE, rows, comparisons)


def check_metrics(grid: Grid, outcome: Outcome) -> None:
    """Refuse metrics that the task does not report, which only a finished run shows.

    Raises:
        ConfigError: with the name of the metric.
    """
    for name in grid.metrics:
        if name not in outcome.metrics:
            known = nearest(name, outcome.metrics)
            raise ConfigError(f"sweep.metrics contains {name!r}, which the task does not report{known}")


def _row(cell: Cell, seeds: Sequence[int], outcomes: Mapping[str, Outcome]) -> Row:
    last = [outcomes[list(stage_runs(cell, seed))[-1].name] for seed in seeds]
    measured = [outcome for outcome in last if outcome.correlation_after]
    figures = {name: tuple(outcome.metrics[name] for outcome in last) for name in last[0].metrics}
    return Row(
        kind=cell.kind,
        structure=cell.structure,
        criterion=cell.criterion,
        schedule=cell.schedule,
        training=cell.training,
        stages=len(cell.plan.stages),
        kept=last[0].kept,
        weights=last[0].weights,
        metrics={name: mean_of(values) for name, values in figures.items()},
        by_seed=figures,
        correlation_before=mean_of([_over_layers(one.correlation_before) for one in measured]) if measured else None,
        correlation_after=mean_of([_over_layers(one.correlation_after) for one in measured]) if measured else None,
        allocation=cell.allocation,
    )


def _over_layers(by_layer: Mapping[str, float]) -> float:
    """Return the mean over the layers that a stage prunes, with equal weights; most stages prune one layer."""
    return sum(by_layer.values()) / len(by_layer)


def _difference(first: Row, second: Row, metric: str) -> Mean:
    return mean_of([a - b for a, b in zip(first.by_seed[metric], second.by_seed[metric], strict=True)])


def _questions(cells: Sequence[Cell]) -> Iterator[tuple[str, int, int]]:
    """Yield (question, index of the first cell, index of the second) for each comparison.

    Pruned cells are compared with their control and with the dense network, and the first entry of each axis with the
    other entries.
    """
    dense, lead = cells[0], next(cell for cell in cells if cell.kind == "pruned")
    for cell in cells:
        if cell.kind != "pruned":
            continue
        # Controls are trained through the stages of the first schedule.
        for other in cells if cell.schedule == lead.schedule else ():
            if other.kind == "control" and _target(other) == _target(cell) and other.training == cell.training:
                yield "pruned - dense, trained on for as many steps", cells.index(cell), cells.index(other)
        if (cell.schedule, cell.training) == (lead.schedule, lead.training):
            yield "pruned - dense, not trained on", cells.index(cell), cells.index(dense)
        for axis in _AXES:
            first = next(other for other in cells if other.kind == "pruned" and _differs_only_in(axis, other, cell))
            if first is not cell:
                names = (getattr(either, axis) or "as the recipe" for either in (first, cell))
                yield " - ".join(names), cells.index(first), cells.index(cell)


def _target(cell: Cell) -> tuple[str, str]:
    return cell.structure, cell.allocation


def _differs_only_in(axis: str, first: Cell, second: Cell) -> bool:
    """Return whether two cells agree on all other axes; two structures must agree up to the order of their layers."""
    others = {*_AXES} - {axis}
    if any(getattr(first, other) != getattr(second, other) for other in others):
        return False
    return axis != "structure" or set(parse_structure(first.structure)) == set(parse_structure(second.structure))


def to_json(summary: Summary) -> Any:
    """Return a summary as plain data, reproducible byte for byte: it contains no times."""
    return cattrs.unstructure(summary)
