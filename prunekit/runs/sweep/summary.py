"""What a sweep found: figures of every cell over the seeds, and paired differences between cells, as data and as text.

This module must not know how runs are made; it is given their outcomes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import cattrs

from prunekit.errors import ConfigError, nearest
from prunekit.pruning.structure_text import parse_structure
from prunekit.runs.sweep.execution import Outcome
from prunekit.runs.sweep.grid import Cell, Sweep
from prunekit.runs.sweep.intervals import CONFIDENCE, Mean, mean_of
from prunekit.runs.sweep.run_tree import chain

_AXES = ("criterion", "schedule", "training", "allocation", "structure")


@attrs.frozen
class Row:
    """One cell over all seeds.

    Attributes:
        kind: "dense", "control" or "pruned".
        structure: of the recipe.
        criterion: with options; "" where nothing is pruned.
        schedule: likewise.
        training: settings that differ from the recipe's.
        stages: stages of training.
        kept: weights left.
        weights: prunable weights.
        metrics: name -> mean over the seeds.
        by_seed: name -> the figure of each seed, in the order of the seeds.
        correlation_before: mean absolute correlation of the connections that the last stage's pruning kept, before
            re-training; ``None`` where it pruned nothing or nobody asked.
        correlation_after: the same connections after it.
        allocation: how the density becomes masks; "" where the sweep does not vary that.
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
    """Two cells, seed by seed.

    Attributes:
        question: what is compared, in words.
        first: the row whose figures are the greater where the difference is above 0.
        second: the other row.
        differences: metric -> first - second, paired over the seeds.
    """

    question: str
    first: int
    second: int
    differences: Mapping[str, Mean]


@attrs.frozen
class Summary:
    """Everything a sweep found.

    Attributes:
        seeds: in order.
        metrics: the figures compared, the most telling one first.
        confidence: of every interval.
        rows: one a cell.
        comparisons: in the order of the rows.
    """

    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    confidence: float
    rows: tuple[Row, ...]
    comparisons: tuple[PairedComparison, ...]


def summarise(sweep: Sweep, cells: Sequence[Cell], seeds: Sequence[int], outcomes: Mapping[str, Outcome]) -> Summary:
    """Put the outcomes of all runs together.

    Args:
        sweep: says which figures to compare; without any, all that the task gives.
        cells: the rows.
        seeds: of the columns.
        outcomes: by name of the run; all have the metrics that the sweep names.
    """
    metrics = sweep.metrics or tuple(next(iter(outcomes.values())).metrics)
    rows = tuple(_row(cell, seeds, outcomes) for cell in cells)
    comparisons = tuple(
        PairedComparison(
            question, first, second, {name: _difference(rows[first], rows[second], name) for name in metrics}
        )
        for question, first, second in _questions(cells)
    )
    return Summary(tuple(seeds), tuple(metrics), CONFIDENCE, rows, comparisons)


def check_metrics(sweep: Sweep, outcome: Outcome) -> None:
    """Refuse metrics that the task does not give; the first finished run can tell.

    Raises:
        ConfigError: naming one.
    """
    for name in sweep.metrics:
        if name not in outcome.metrics:
            known = nearest(name, outcome.metrics)
            raise ConfigError(f"sweep.metrics names {name!r}, which the task does not give{known}")


def _row(cell: Cell, seeds: Sequence[int], outcomes: Mapping[str, Outcome]) -> Row:
    nodes = [list(chain(cell, seed)) for seed in seeds]
    last = [outcomes[chained[-1].name] for chained in nodes]
    measured = [outcome for outcome in last if outcome.correlation_after]
    figures = {name: tuple(outcome.metrics[name] for outcome in last) for name in last[0].metrics}
    return Row(
        cell.kind,
        cell.structure,
        cell.criterion,
        cell.schedule,
        cell.training,
        len(cell.plan.stages),
        last[0].kept,
        last[0].weights,
        {name: mean_of(values) for name, values in figures.items()},
        figures,
        mean_of([_over_layers(outcome.correlation_before) for outcome in measured]) if measured else None,
        mean_of([_over_layers(outcome.correlation_after) for outcome in measured]) if measured else None,
        cell.allocation,
    )


def _over_layers(by_layer: Mapping[str, float]) -> float:
    """Return the mean over the layers that a stage prunes, each counted alike; most stages prune one."""
    return sum(by_layer.values()) / len(by_layer)


def _difference(first: Row, second: Row, metric: str) -> Mean:
    return mean_of([a - b for a, b in zip(first.by_seed[metric], second.by_seed[metric], strict=True)])


def _questions(cells: Sequence[Cell]) -> Iterator[tuple[str, int, int]]:
    """Yield (question, first cell, second cell) for all that the grid was made to answer."""
    dense, lead = cells[0], next(cell for cell in cells if cell.kind == "pruned")
    for cell in cells:
        if cell.kind != "pruned":
            continue
        # Controls go through the stages of the first schedule.
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
    """Say whether two cells are the same but for one axis; of structures, whether only their order differs."""
    others = {*_AXES} - {axis}
    if any(getattr(first, other) != getattr(second, other) for other in others):
        return False
    return axis != "structure" or set(parse_structure(first.structure)) == set(parse_structure(second.structure))


def to_json(summary: Summary) -> Any:
    """Return a summary as plain data, without anything that another run of the same sweep would not give again."""
    return cattrs.unstructure(summary)


def to_markdown(summary: Summary, title: str) -> str:
    """Return both tables as Markdown."""
    seeds = ", ".join(map(str, summary.seeds))
    about = f"{len(summary.seeds)} seeds: {seeds}. Figures are means ± standard errors over the seeds."
    differences = f"Differences are paired over the seeds, with {summary.confidence:.0%} intervals (Student's t)."
    figures = _markdown(*figures_table(summary))
    return "\n\n".join((f"# {title}", about, figures, differences, _markdown(*differences_table(summary)))) + "\n"


def figures_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of the table of cells."""
    measured = any(row.correlation_after for row in summary.rows)
    more = ["kept correlation before", "after re-training"] if measured else []
    varied = any(row.training for row in summary.rows)
    settings = ["training"] if varied else []
    allocated = any(row.allocation for row in summary.rows)
    head = [
        "network",
        *(["allocation"] if allocated else []),
        "criterion",
        "schedule",
        *settings,
        "weights left",
        *summary.metrics,
        *more,
    ]
    lines = []
    for row in summary.rows:
        name = {"dense": "dense", "control": f"dense, trained on as for {row.structure}"}.get(row.kind, row.structure)
        figures = [_plus_minus(row.metrics[metric]) for metric in summary.metrics]
        correlations = [_plus_minus(row.correlation_before), _plus_minus(row.correlation_after)] if measured else []
        how = [row.allocation] if allocated else []
        labels = [name, *how, row.criterion, row.schedule, *([row.training] if varied else [])]
        lines.append([*labels, f"{row.weights_left:.3f}", *figures, *correlations])
    return head, lines


def differences_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of the table of comparisons, in points: hundredths of the figure."""
    head = ["structure", "of", "difference"]
    for metric in summary.metrics:
        head += [f"{metric}, points", "above 0", "verdict"]
    lines = []
    for comparison in summary.comparisons:
        row = summary.rows[comparison.first]
        of = ", ".join(filter(None, (row.allocation, row.criterion, row.schedule, row.training)))
        line = [row.structure, of, comparison.question]
        for metric in summary.metrics:
            mean = comparison.differences[metric]
            line += [_interval(mean), f"{mean.above} of {mean.count}", mean.verdict]
        lines.append(line)
    return head, lines


def _plus_minus(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.value:.4f}" + (f" ± {mean.standard_error:.4f}" if mean.standard_error is not None else "")


def _interval(mean: Mean) -> str:
    value = f"{100 * mean.value:+.2f}"
    if mean.half_width is None:
        return value
    return f"{value} [{100 * (mean.value - mean.half_width):+.2f}, {100 * (mean.value + mean.half_width):+.2f}]"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
