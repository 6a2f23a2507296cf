"""The summary that ``prunekit run`` prints: a table with one row per stage, and the files of the run."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.contracts.evaluation import Evaluation
    from prunekit.contracts.events import RunFinished

_SHOWN = 3
"""Metrics that fit a terminal; tasks list the most informative ones first."""

_FILES = {
    "masks": "packed bits, by parameter name",
    "model": "the deployed network; dropped weights are 0",
    "metrics": "one JSON object per line",
    "config": "the recipe of this run",
}


def print_result(finished: "RunFinished") -> None:
    """Print the stages of a finished run, and the paths of its files."""
    from prunekit.runs.folder import RunFolder

    _print_stages(finished)
    folder = RunFolder(finished.folder)
    for name, meaning in _FILES.items():
        path = getattr(folder, name)
        if path.exists():
            click.echo(f"{name:8} {path}  ({meaning})")


def _print_stages(finished: "RunFinished") -> None:
    from prunekit.cli.tables import make_table, print_table

    all_metrics = tuple(finished.stages[-1].evaluation.metrics) if finished.stages else ()
    metrics = all_metrics[:_SHOWN]
    numbers = ("requested", "realised", "kept", "weights left", *metrics, "time")
    table = make_table("Stages", "stage", "layer", *numbers, numbers=numbers)
    for stage in finished.stages:
        realised = "\n".join(f"{stage.kept[name] / stage.weights[name]:.5g}" for name in stage.requested) or "-"
        table.add_row(
            stage.name,
            "\n".join(stage.requested) or "-",
            "\n".join(f"{density:.5g}" for density in stage.requested.values()) or "-",
            realised,
            f"{sum(stage.kept.values()):,}",
            f"{stage.weights_left:.4f}",
            *(_figure(stage.evaluation, name) for name in metrics),
            str(timedelta(seconds=round(stage.seconds))),
        )
    print_table(table)
    click.echo("weights left: kept / prunable weights, biases not counted (the paper's compression ratio)")
    if more := all_metrics[_SHOWN:]:
        click.echo(f"also in the metric log: {', '.join(more)}")
    stages = "1 stage" if len(finished.stages) == 1 else f"{len(finished.stages)} stages"
    click.echo(f"{stages} in {timedelta(seconds=round(finished.seconds))}")


def _figure(evaluation: "Evaluation", name: str) -> str:
    value = f"{evaluation.metrics[name]:.4f}" if name in evaluation.metrics else "-"
    error = evaluation.standard_errors.get(name)
    return value if error is None else f"{value} ± {error:.4f}"
