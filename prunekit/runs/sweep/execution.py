"""Carries out the runs of a sweep: each once, after the one that it goes on from, side by side where there are cores.

Every run lies in a folder of its own like any other run, and a result beside it once it is complete; a sweep that
was interrupted takes up what is there. It must not know what the figures are compared for.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import attrs
import cattrs
import torch

from prunekit.contracts.seeds import Seeds
from prunekit.errors import CheckpointError, Interrupted, PrunekitError, TrainingError
from prunekit.files.atomic import held_alone, make_writable_folder, write_atomically
from prunekit.files.headers import encode_json, read_json
from prunekit.layers.lookup import parameter_name
from prunekit.masks.masks import load_masks
from prunekit.masks.weight_files import load_weights
from prunekit.plugins.manager import PluginManager, make_manager
from prunekit.plugins.registry import Registry, collect
from prunekit.runs.absolute_paths import with_absolute_paths
from prunekit.runs.config import RunConfig
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import PreparedRun, prepare
from prunekit.runs.sweep.kept_correlation import kept_correlation
from prunekit.runs.sweep.run_tree import Node
from prunekit.runs.sweep.worker_pool import processes
from prunekit.runs.training.hardware import Hardware

_RESULT = "result.json"
_GO_ON = "what is complete stays; the same command goes on from there"
_KEPT_TASKS = 2  # of a worker: two seeds are under way while one ends and the next begins


@attrs.frozen
class Outcome:
    """What a run came to.

    Attributes:
        metrics: the task's figures after the last stage, and "training_loss", the mean over its last epoch.
        kept: weights left.
        weights: prunable weights.
        seconds: wall time of the last stage.
        correlation_before: layer -> mean absolute correlation of the connections that this stage's pruning kept,
            in the network that it found; empty where nothing was pruned or nobody asked.
        correlation_after: the same connections at the end of the stage.
    """

    metrics: Mapping[str, float]
    kept: int
    weights: int
    seconds: float
    correlation_before: Mapping[str, float] = attrs.field(factory=dict)
    correlation_after: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen
class Work:
    """Where and how a sweep computes.

    Attributes:
        folder: of all runs; sweeps that share it share runs.
        jobs: runs side by side.
        threads: of each.
        devices: names that the jobs share out; each has one at a time.
        kept_correlation: whether to measure it.
    """

    folder: Path
    jobs: int
    threads: int
    devices: tuple[str, ...]
    kept_correlation: bool = False

    @classmethod
    def here(cls, folder: Path, device: str, jobs: int | None, *, kept_correlation: bool) -> "Work":
        """Share out what this process may use of the machine: a GPU each, or one core each."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        devices = gpus if device in {"auto", "cuda"} and gpus else [device]
        jobs = jobs or (len(gpus) if devices == gpus else max(1, cores if device in {"auto", "cpu"} else 1))
        shared = tuple(devices[index % len(devices)] for index in range(jobs))
        return cls(folder, jobs, max(1, cores // jobs), shared, kept_correlation)


def carry_out(
    nodes: Iterable[Node], work: Work, announce: Callable[[Node, Outcome, int], None] = lambda *_: None
) -> dict[str, Outcome]:
    """Run what has no result yet, and return the outcome of every run by name.

    Args:
        nodes: parents may stand anywhere among them; each name counts once.
        work: where and how.
        announce: told of each run that is new, and how many are still to come.

    Raises:
        CheckpointError: when another sweep is at work in the folder.
        Interrupted: at Ctrl-C or SIGTERM; no process is left then.
        PrunekitError: what a run raises, naming it; what is complete stays and the same call goes on from there.
    """
    make_writable_folder(work.folder)
    with held_alone(work.folder):
        try:
            return _carry_out({node.name: node for node in nodes}, work, announce)
        except Interrupted as error:
            error.add_note(_GO_ON)
            raise


def _carry_out(
    todo: Mapping[str, Node], work: Work, announce: Callable[[Node, Outcome, int], None]
) -> dict[str, Outcome]:
    outcomes = {name: found for name, node in todo.items() if (found := _found(node, work)) is not None}
    waiting = [node for name, node in todo.items() if name not in outcomes]
    if not waiting:
        return outcomes
    free = list(work.devices)
    running: dict[Future[Outcome], tuple[Node, str]] = {}
    with processes(min(work.jobs, len(waiting)), torch.set_num_threads, work.threads) as submit:
        try:
            while waiting or running:
                for node in [node for node in waiting if node.parent is None or node.parent in outcomes][: len(free)]:
                    waiting.remove(node)
                    device = free.pop(0)
                    running[submit(_run_node, node, work, device)] = node, device
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    node, device = running[future]
                    outcomes[node.name] = _outcome(future, node)
                    del running[future]
                    free.append(device)
                    announce(node, outcomes[node.name], len(waiting) + len(running))
        except BrokenProcessPool as error:
            names = dict.fromkeys([node.name, *(other.name for other, _ in running.values())])
            died = f"run {' or '.join(names)} died"  # nothing tells which
            raise TrainingError(f"{died}, perhaps for lack of memory (fewer --jobs); {_GO_ON}") from error
    return outcomes


def _outcome(future: "Future[Outcome]", node: Node) -> Outcome:
    try:
        return future.result()
    except PrunekitError as error:
        raise type(error)(f"run {node.name}: {error}; {_GO_ON}") from error


@attrs.define
class _Worker:
    """What a worker process keeps between runs: the latest ones by task and seed, for their data."""

    latest: dict[tuple[str, int], PreparedRun] = attrs.field(factory=dict)

    def prepare(self, config: RunConfig, manager: PluginManager, registry: Registry) -> PreparedRun:
        """Prepare a run, with the data of an earlier one of the same task and seed."""
        task = repr(cattrs.unstructure(config.task)), config.seed
        prepared = prepare(config, manager, registry, like=self.latest.pop(task, None))
        self.latest[task] = prepared
        for oldest in list(self.latest)[:-_KEPT_TASKS]:
            del self.latest[oldest]
        return prepared


_WORKER = _Worker()


def _run_node(node: Node, work: Work, device: str) -> Outcome:
    """Carry out one run, or the rest of one that was interrupted, and write its result."""
    config = attrs.evolve(node.config, device=device)
    manager = make_manager({*config.no_plugins, "progress"})
    registry = collect(manager)
    prepared = _WORKER.prepare(config, manager, registry)
    folder = RunFolder(work.folder / node.name)
    source = RunFolder(work.folder / node.parent) if node.parent else None
    resume = folder.config.is_file()
    # A worker that outlived its sweep, which was killed, may still be at it.
    with held_alone(make_writable_folder(folder.path)):
        finished = run(
            with_absolute_paths(config, registry),
            prepared,
            manager.hook,
            folder,
            resume=resume,
            force=not resume,
            source=source,
            last=node.last,
        )
    stage = finished.stages[-1]
    outcome = Outcome(
        {**stage.evaluation.metrics, **_training_loss(folder)},
        sum(stage.kept.values()),
        sum(stage.weights.values()),
        stage.seconds,
    )
    if work.kept_correlation and node.layers and source is not None:
        before, after = _correlations(node, prepared, config, folder, source)
        outcome = attrs.evolve(outcome, correlation_before=before, correlation_after=after)
    write_atomically(folder.path / _RESULT, encode_json("result", cattrs.unstructure(outcome)))
    return outcome


def _training_loss(folder: RunFolder) -> dict[str, float]:
    """Return the mean loss of the last epoch, from the metric log; nothing where that plugin was left out."""
    lines = folder.metrics.read_text(encoding="utf-8").splitlines() if folder.metrics.exists() else []
    losses = [entry["loss"] for entry in map(json.loads, lines) if entry["event"] == "epoch_finished"]
    return {"training_loss": losses[-1]} if losses else {}


def _correlations(
    node: Node, prepared: PreparedRun, config: RunConfig, folder: RunFolder, source: RunFolder
) -> list[dict[str, float]]:
    """Measure the connections that the last stage's pruning kept, in the network that it found and in its own."""
    manager = make_manager(config.no_plugins)
    criterion = partial(collect(manager).make_criterion, "correlation")
    hardware = Hardware.of(config.device, prepared.training)
    names = {layer: parameter_name(layer, prepared.views[layer]) for layer in node.layers}
    tensors = load_masks(folder.masks).tensors
    masks = {layer: tensors[name].to(hardware.device) for layer, name in names.items()}
    found = []
    for weights in (source.model, folder.model):
        prepared.network.load_state_dict(load_weights(weights))
        found.append(kept_correlation(prepared, hardware, Seeds(config.seed), masks, criterion))
    return found


def _found(node: Node, work: Work) -> Outcome | None:
    """Return the outcome of a complete run; ``None`` where there is none, or it lacks what is wanted now.

    Raises:
        CheckpointError: when there is one that cannot be read.
    """
    path = work.folder / node.name / _RESULT
    if not path.exists():
        return None
    try:
        found = cattrs.structure(read_json(path, "result", CheckpointError), Outcome)
    except (OSError, ValueError, cattrs.BaseValidationError) as error:
        raise CheckpointError(
            f"the result {path} cannot be read: {error}; remove its folder, it is made again"
        ) from error
    lacking = work.kept_correlation and node.parent and node.layers and not found.correlation_after
    return None if lacking else found
