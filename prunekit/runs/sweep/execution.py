"""Carry out the runs of a sweep, each once and after the run that it continues, in parallel worker processes.

Complete runs are not repeated, so an interrupted sweep continues where it stopped. This module must not know what a
run does, or how outcomes are compared.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import attrs
import torch

from prunekit.errors import Interrupted, PrunekitError, TrainingError
from prunekit.files.atomic import held_alone, make_writable_folder
from prunekit.runs.sweep.outcome import Outcome, read_outcome
from prunekit.runs.sweep.run_tree import StageRun
from prunekit.runs.sweep.worker import carry_out_stage
from prunekit.runs.sweep.worker_pool import worker_processes

Announce = Callable[[StageRun, Outcome, int], object]
"""Called with each new run, its outcome, and the number of runs that remain."""

_NEXT_STEP = "finished runs are kept, and the same command continues from there"


@attrs.frozen
class ExecutionSettings:
    """Where and how the runs of a sweep are carried out.

    Attributes:
        folder: of all runs; sweeps in the same folder share runs.
        jobs: number of runs in parallel.
        threads: CPU threads of each run.
        devices: names, one for each job; a device is used by one run at a time.
        kept_correlation: whether to measure the correlation of the kept connections.
    """

    folder: Path
    jobs: int
    threads: int
    devices: tuple[str, ...]
    kept_correlation: bool = False

    @classmethod
    def for_this_machine(
        cls, folder: Path, device: str, jobs: int | None, *, kept_correlation: bool
    ) -> "ExecutionSettings":
        """Divide the GPUs, or the CPU cores that this process may use, among the jobs.

        Args:
            folder: of all runs.
            device: the device that the user requested; "auto" and "cuda" mean all GPUs.
            jobs: number of runs in parallel; ``None``: one per GPU, or one per core.
            kept_correlation: whether to measure the correlation of the kept connections.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        devices = gpus if device in {"auto", "cuda"} and gpus else [device]
        jobs = jobs or (len(gpus) if devices == gpus else max(1, cores if device in {"auto", "cpu"} else 1))
        assigned = tuple(devices[index % len(devices)] for index in range(jobs))
        return cls(folder, jobs, max(1, cores // jobs), assigned, kept_correlation)


def carry_out_runs(
    runs: Iterable[StageRun], settings: ExecutionSettings, announce: Announce = lambda *_: None
) -> dict[str, Outcome]:
    """Carry out the runs that are not complete yet, and return the outcome of every run by name.

    Args:
        runs: in any order; a name that occurs twice is one run.
        settings: where and how.
        announce: called when a run has finished.

    Raises:
        CheckpointError: when another sweep is working in the folder, or an outcome cannot be read.
        Interrupted: on Ctrl-C or SIGTERM; all worker processes have ended.
        PrunekitError: from a run, with its name; finished runs are kept.
    """
    make_writable_folder(settings.folder)
    with held_alone(settings.folder):
        try:
            return _carry_out({run.name: run for run in runs}, settings, announce)
        except Interrupted as error:
            error.add_note(_NEXT_STEP)
            raise


def _carry_out(runs: Mapping[str, StageRun], settings: ExecutionSettings, announce: Announce) -> dict[str, Outcome]:
    outcomes = {name: known for name, run in runs.items() if (known := _known_outcome(run, settings)) is not None}
    waiting = [run for name, run in runs.items() if name not in outcomes]
    if not waiting:
        return outcomes
    free = list(settings.devices)
    running: dict[Future[Outcome], tuple[StageRun, str]] = {}
    with worker_processes(min(settings.jobs, len(waiting)), torch.set_num_threads, settings.threads) as submit:
        try:
            while waiting or running:
                for run in [run for run in waiting if run.parent is None or run.parent in outcomes][: len(free)]:
                    waiting.remove(run)
                    device = free.pop(0)
                    future = submit(
                        carry_out_stage, run, settings.folder, device, correlations=settings.kept_correlation
                    )
                    running[future] = run, device
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run, device = running[future]
                    outcomes[run.name] = _outcome(future, run)
                    del running[future]
                    free.append(device)
                    announce(run, outcomes[run.name], len(waiting) + len(running))
        except BrokenProcessPool as error:
            names = dict.fromkeys([run.name, *(other.name for other, _ in running.values())])
            died = f"run {' or '.join(names)} died"  # the pool does not say which
            raise TrainingError(f"{died}, possibly out of memory (try fewer --jobs); {_NEXT_STEP}") from error
    return outcomes


def _outcome(future: "Future[Outcome]", run: StageRun) -> Outcome:
    try:
        return future.result()
    except PrunekitError as error:
        raise type(error)(f"run {run.name}: {error}; {_NEXT_STEP}") from error


def _known_outcome(run: StageRun, settings: ExecutionSettings) -> Outcome | None:
    """Return the outcome of a complete run; ``None`` if it is not complete, or lacks the correlations."""
    outcome = read_outcome(settings.folder / run.name)
    correlated = settings.kept_correlation and run.parent and run.layers
    if outcome is not None and correlated and not outcome.correlation_after:
        return None
    return outcome
