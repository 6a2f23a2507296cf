"""``prunekit sweep``: a grid of runs over seeds, and what differs in it."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.runs.sweep.execution import Outcome
    from prunekit.runs.sweep.run_tree import Node
    from prunekit.runs.sweep.summary import Summary


@click.command()
@click.argument("recipe", type=click.Path())
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=1), help="How many seeds.")
@click.option("--seed", metavar="NUMBER", help="The first of them; the recipe's, or 0.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs side by side; a GPU or a core each.")
@click.option("--data", metavar="FOLDER", help="The task's data; short for -o task.data=FOLDER.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1.")
@click.option(
    "-o",
    "--option",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set anything but the grid; repeatable.",
)
@click.option("--out", metavar="FOLDER", help="Where the summary goes; sweeps/NAME OF THE RECIPE.")
@click.option("--runs", metavar="FOLDER", help="Where the runs go; sweeps that share it share runs. OUT/../runs.")
def sweep(
    recipe: str,
    seeds: int,
    seed: str | None,
    jobs: int | None,
    data: str | None,
    device: str | None,
    overrides: tuple[str, ...],
    out: str | None,
    runs: str | None,
) -> None:
    """Run a grid of structures, criteria and schedules over seeds; print means and paired differences.

    Runs that are complete are not run again: the same command goes on where it was interrupted.
    """
    from time import perf_counter

    from prunekit.files.atomic import make_writable_folder, write_atomically
    from prunekit.files.headers import encode_json
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect
    from prunekit.runs.environment import environment
    from prunekit.runs.recipes import read_recipe
    from prunekit.runs.sweep.execution import Work, carry_out
    from prunekit.runs.sweep.grid import make_cells, read_sweep
    from prunekit.runs.sweep.run_tree import chain
    from prunekit.runs.sweep.summary import check_metrics, summarise, to_json, to_markdown

    spelled = (f"task.data={data}",) if data is not None else ()
    asked = read_sweep(read_recipe(recipe), {"seed": seed, "device": device}, (*spelled, *overrides))
    folder = make_writable_folder(out or Path("sweeps") / Path(recipe).stem)
    work = Work.here(
        Path(runs) if runs else folder.parent / "runs", asked.base.device, jobs, kept_correlation=asked.kept_correlation
    )
    manager = make_manager(asked.base.no_plugins)
    cells = make_cells(asked, manager, collect(manager))
    numbers = range(asked.base.seed, asked.base.seed + seeds)
    nodes = {node.name: node for number in numbers for cell in cells for node in chain(cell, number)}
    click.echo(f"{len(cells)} rows, {seeds} seeds: {len(nodes)} runs, {work.jobs} side by side, in {work.folder}")
    began = perf_counter()

    def announce(node: "Node", outcome: "Outcome", left: int) -> None:
        check_metrics(asked, outcome)
        figures = ", ".join(f"{name} {outcome.metrics[name]:.4f}" for name in asked.metrics or outcome.metrics)
        took = timedelta(seconds=round(perf_counter() - began))
        click.echo(f"{took}  {node.name}: {figures} ({outcome.seconds:.0f} s); {left} to come")

    outcomes = carry_out(nodes.values(), work, announce)
    for outcome in outcomes.values():
        check_metrics(asked, outcome)
    summary = summarise(asked, cells, numbers, outcomes)
    write_atomically(folder / "summary.json", encode_json("summary", to_json(summary)))
    write_atomically(folder / "summary.md", to_markdown(summary, Path(recipe).stem).encode())
    seconds = sum(outcomes[name].seconds for name in nodes)
    facts = {
        **environment(asked.base.seed, f"{work.jobs} jobs of {work.threads} threads"),
        "seconds": perf_counter() - began,
        "seconds_of_runs": seconds,
    }
    write_atomically(folder / "environment.json", encode_json("environment", facts))
    _print(summary)
    click.echo(f"{len(nodes)} runs of {timedelta(seconds=round(seconds))} in all; {folder / 'summary.md'}")


def _print(summary: "Summary") -> None:
    from prunekit.cli.tables import make_table, print_table
    from prunekit.runs.sweep.summary import differences_table, figures_table

    for title, (head, lines) in (
        (f"Means over {len(summary.seeds)} seeds ± standard error", figures_table(summary)),
        (f"Paired differences with {summary.confidence:.0%} intervals", differences_table(summary)),
    ):
        table = make_table(title)
        for column in head:
            table.add_column(column)
        for line in lines:
            table.add_row(*line)
        print_table(table)
