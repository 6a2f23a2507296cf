"""What a run prints at its end: one row a stage, and where the files are."""

from datetime import timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.contracts.evaluation import Evaluation
    from prunekit.contracts.events import RunFinished
    from prunekit.runs.folder import RunFolder

_SHOWN = 3
"""Figures that fit a terminal; tasks name the most telling first."""

_FILES = {
    "masks": "bits, by parameter name",
    "model": "the deployed network, dropped weights 0",
    "metrics": "one JSON object a line",
    "config": "this run as a recipe",
}


def print_result(finished: "RunFinished") -> None:
    """Print the table of stages."""
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


def print_files(folder: "RunFolder") -> None:
    """Say where the files of the run are."""
    for name, meaning in _FILES.items():
        path = getattr(folder, name)
        if path.exists():
            click.echo(f"{name:8} {path}  ({meaning})")
