"""``prunekit sweep``: run a grid over seeds, and print means and paired differences."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.runs.sweep.summary import Summary
    from prunekit.runs.sweep.sweep import FinishedRun


@click.command()
@click.argument("recipe", type=click.Path())
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=1), help="Number of seeds.")
@click.option("--seed", metavar="NUMBER", help="First seed; by default the recipe's, or 0.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs in parallel; by default one per GPU or CPU core.")
@click.option("--data", metavar="FOLDER", help="Folder of the task's data; short for -o task.data=FOLDER.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@click.option(
    "-o",
    "--option",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set any setting outside [sweep]; repeatable.",
)
@click.option("--out", metavar="FOLDER", help="Folder of the summary; by default sweeps/RECIPE.")
@click.option("--runs", metavar="FOLDER", help="Folder of the runs, which sweeps can share; by default OUT/../runs.")
def sweep(recipe: str, data: str | None, overrides: tuple[str, ...], **flags: Any) -> None:
    """Run a grid of structures, criteria and schedules over seeds; print means and paired differences.

    RECIPE is a TOML file with a section [sweep]. Complete runs are not repeated: to continue an interrupted sweep,
    repeat the command.
    """
    from prunekit.runs.sweep.sweep import carry_out_sweep, plan_sweep

    config = {name: flags.pop(name) for name in ("seed", "device")}
    spelled = (f"task.data={data}",) if data is not None else ()
    planned = plan_sweep(recipe, flags=config, overrides=(*spelled, *overrides), **flags)
    settings, runs = planned.settings, len(planned.runs)
    counts = f"{len(planned.cells)} rows, {len(planned.seeds)} seeds: {runs} runs"
    click.echo(f"{counts}, {settings.jobs} in parallel, in {settings.folder}")
    finished = carry_out_sweep(planned, _print_run)
    _print_summary(finished.summary)
    computed = timedelta(seconds=round(finished.seconds_of_runs))
    click.echo(f"{runs} runs, {computed} in total; summary in {finished.page}")


def _print_run(run: "FinishedRun") -> None:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in run.metrics.items())
    elapsed = timedelta(seconds=round(run.elapsed))
    click.echo(f"{elapsed}  {run.name}: {metrics} ({run.seconds:.0f} s); {run.remaining} remaining")


def _print_summary(summary: "Summary") -> None:
    from prunekit.cli.tables import make_table, print_table
    from prunekit.runs.sweep.summary_tables import differences_table, figures_table

    for title, (head, lines) in (
        (f"Means over {len(summary.seeds)} seeds ± standard error", figures_table(summary)),
        (f"Paired differences with {summary.confidence:.0%} intervals", differences_table(summary)),
    ):
        table = make_table(title, *head)
        for line in lines:
            table.add_row(*line)
        print_table(table)
