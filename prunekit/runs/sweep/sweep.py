"""A sweep as two calls: plan its runs from a recipe, then carry them out and write the summary.

It must not know the command line, or how a run works.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs

from prunekit.files.atomic import make_writable_folder, write_atomically
from prunekit.files.headers import encode_json
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.environment import environment
from prunekit.runs.recipes import read_recipe
from prunekit.runs.sweep.cells import Cell, make_cells
from prunekit.runs.sweep.execution import ExecutionSettings, carry_out_runs
from prunekit.runs.sweep.grid import Grid, read_grid
from prunekit.runs.sweep.outcome import Outcome
from prunekit.runs.sweep.run_tree import StageRun, stage_runs
from prunekit.runs.sweep.summary import Summary, check_metrics, summarise, to_json
from prunekit.runs.sweep.summary_tables import to_markdown


@attrs.frozen
class PlannedSweep:
    """A sweep before its first run.

    Attributes:
        title: of the summary.
        folder: where the summary is written.
        grid: what is varied.
        cells: the rows of the table of results, each checked like a run.
        seeds: in ascending order.
        runs: by name; a run that several cells need occurs once.
        settings: where and how the runs are carried out.
    """

    title: str
    folder: Path
    grid: Grid
    cells: tuple[Cell, ...]
    seeds: range
    runs: Mapping[str, StageRun]
    settings: ExecutionSettings


@attrs.frozen
class FinishedRun:
    """A run of a sweep that has just finished.

    Attributes:
        name: of its folder.
        metrics: the metrics that the sweep compares.
        seconds: wall time of the run.
        elapsed: seconds since the sweep began.
        remaining: number of runs that are not finished.
    """

    name: str
    metrics: Mapping[str, float]
    seconds: float
    elapsed: float
    remaining: int


@attrs.frozen
class FinishedSweep:
    """A finished sweep.

    Attributes:
        summary: the results.
        page: the Markdown file with the tables.
        seconds_of_runs: wall times of all runs added up, those of earlier calls included.
    """

    summary: Summary
    page: Path
    seconds_of_runs: float


def plan_sweep(
    recipe: str | Path,
    *,
    seeds: int = 5,
    jobs: int | None = None,
    out: str | Path | None = None,
    runs: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> PlannedSweep:
    """Read a recipe with a section [sweep], and check every run that it leads to.

        sweep = plan_sweep("examples/sweep.toml", seeds=3, flags={"device": "cpu"})
        finished = carry_out_sweep(sweep, lambda run: print(run.name))

    Args:
        recipe: the file.
        seeds: number of seeds; the first is that of the recipe or of ``flags``.
        jobs: number of runs in parallel; ``None``: one per GPU or CPU core.
        out: folder of the summary; ``None``: "sweeps/" and the name of the recipe.
        runs: folder of the runs; ``None``: "runs" beside ``out``. Sweeps in the same folder share runs.
        flags: see ``prunekit.runs.recipes.build_config``.
        overrides: see ``prunekit.runs.recipes.build_config``.

    Raises:
        CheckpointError: when the folder of the summary cannot be written.
        ConfigError: a wrong recipe, or a value that a run would refuse.
    """
    grid = read_grid(read_recipe(recipe), flags, overrides)
    folder = make_writable_folder(out or Path("sweeps") / Path(recipe).stem)
    settings = ExecutionSettings.for_this_machine(
        Path(runs) if runs else folder.parent / "runs", grid.base.device, jobs, kept_correlation=grid.kept_correlation
    )
    manager = make_manager(grid.base.no_plugins)
    cells = tuple(make_cells(grid, manager, collect(manager)))
    numbers = range(grid.base.seed, grid.base.seed + seeds)
    planned = {run.name: run for seed in numbers for cell in cells for run in stage_runs(cell, seed)}
    return PlannedSweep(Path(recipe).stem, folder, grid, cells, numbers, planned, settings)


def carry_out_sweep(sweep: PlannedSweep, announce: Callable[[FinishedRun], object] = lambda _: None) -> FinishedSweep:
    """Carry out the runs that are not complete yet, and write summary and environment into the sweep's folder.

    Args:
        sweep: as ``plan_sweep`` returns it.
        announce: called when a run has finished.

    Raises:
        ConfigError: a metric to compare that the task does not report.
        PrunekitError: see ``execution.carry_out_runs``.
    """
    began = perf_counter()

    def finished(run: StageRun, outcome: Outcome, remaining: int) -> None:
        check_metrics(sweep.grid, outcome)
        metrics = {name: outcome.metrics[name] for name in sweep.grid.metrics or outcome.metrics}
        announce(FinishedRun(run.name, metrics, outcome.seconds, perf_counter() - began, remaining))

    outcomes = carry_out_runs(sweep.runs.values(), sweep.settings, finished)
    for outcome in outcomes.values():
        check_metrics(sweep.grid, outcome)
    summary = summarise(sweep.grid, sweep.cells, sweep.seeds, outcomes)
    seconds = sum(outcomes[name].seconds for name in sweep.runs)
    facts = {
        **environment(sweep.grid.base.seed, f"{sweep.settings.jobs} jobs of {sweep.settings.threads} threads"),
        "seconds": perf_counter() - began,
        "seconds_of_runs": seconds,
    }
    page = sweep.folder / "summary.md"
    write_atomically(sweep.folder / "summary.json", encode_json("summary", to_json(summary)))
    write_atomically(page, to_markdown(summary, sweep.title).encode())
    write_atomically(sweep.folder / "environment.json", encode_json("environment", facts))
    return FinishedSweep(summary, page, seconds)
