"""The tables of a sweep as text: one of all cells, one of the paired differences.

It must not compute any figure.
"""

from collections.abc import Sequence

from prunekit.runs.sweep.intervals import Mean
from prunekit.runs.sweep.summary import Row, Summary


def to_markdown(summary: Summary, title: str) -> str:
    """Return both tables as a Markdown page."""
    seeds = ", ".join(map(str, summary.seeds))
    about = f"Means ± standard errors over {len(summary.seeds)} seeds: {seeds}."
    differences = f"Differences are paired over the seeds, with {summary.confidence:.0%} intervals (Student's t)."
    figures = _markdown(*figures_table(summary))
    return "\n\n".join((f"# {title}", about, figures, differences, _markdown(*differences_table(summary)))) + "\n"


def figures_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of the table of cells; a column that would be empty is omitted."""
    columns = {
        "network": [_network(row) for row in summary.rows],
        "allocation": [row.allocation for row in summary.rows],
        "criterion": [row.criterion for row in summary.rows],
        "schedule": [row.schedule for row in summary.rows],
        "training": [row.training for row in summary.rows],
        "weights left": [f"{row.weights_left:.3f}" for row in summary.rows],
        **{name: [_plus_minus(row.metrics[name]) for row in summary.rows] for name in summary.metrics},
        "kept correlation before": [_plus_minus(row.correlation_before) for row in summary.rows],
        "after retraining": [_plus_minus(row.correlation_after) for row in summary.rows],
    }
    shown = {name: texts for name, texts in columns.items() if any(texts)}
    return list(shown), [list(line) for line in zip(*shown.values(), strict=True)]


def _network(row: Row) -> str:
    if row.kind == "dense":
        return "dense"
    return f"dense, trained on as for {row.structure}" if row.kind == "control" else row.structure


def differences_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of the table of comparisons, in points: hundredths of a metric."""
    head = ["structure", "settings", "difference"]
    for metric in summary.metrics:
        head += [f"{metric}, points", "above 0", "verdict"]
    lines = []
    for comparison in summary.comparisons:
        row = summary.rows[comparison.first]
        settings = ", ".join(filter(None, (row.allocation, row.criterion, row.schedule, row.training)))
        line = [row.structure, settings, comparison.question]
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
