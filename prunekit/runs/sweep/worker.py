"""One run of a sweep inside a worker process: prepare it, carry out its stage, and write its outcome.

It must not know which other runs the sweep has.
"""

import json
from functools import partial
from pathlib import Path

import attrs
import cattrs

from prunekit.contracts.seeds import Seeds
from prunekit.files.atomic import held_alone, make_writable_folder
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
from prunekit.runs.sweep.outcome import Outcome, write_outcome
from prunekit.runs.sweep.run_tree import StageRun
from prunekit.runs.training.hardware import Hardware

_TASKS = 2  # kept per worker: the runs of one seed may still be going while those of the next begin


@attrs.define
class _Worker:
    """State of a worker process between runs: the latest prepared runs by task and seed, for their data."""

    latest: dict[tuple[str, int], PreparedRun] = attrs.field(factory=dict)

    def prepare(self, config: RunConfig, manager: PluginManager, registry: Registry) -> PreparedRun:
        """Prepare a run, reusing the data of an earlier run of the same task and seed."""
        task = repr(cattrs.unstructure(config.task)), config.seed
        prepared = prepare(config, manager, registry, like=self.latest.pop(task, None))
        self.latest[task] = prepared
        for oldest in list(self.latest)[:-_TASKS]:
            del self.latest[oldest]
        return prepared


_WORKER = _Worker()


def carry_out_stage(stage_run: StageRun, runs: Path, device: str, *, correlations: bool) -> Outcome:
    """Carry out one run, or the rest of an interrupted one, and write its outcome.

    Args:
        stage_run: the run; the run that it continues is complete.
        runs: the folder of all runs.
        device: name of the device to compute on.
        correlations: measure the correlation of the kept connections, if the stage prunes.

    Raises:
        PrunekitError: whatever ended the run.
    """
    config = attrs.evolve(stage_run.config, device=device)
    manager = make_manager({*config.no_plugins, "progress"})
    registry = collect(manager)
    prepared = _WORKER.prepare(config, manager, registry)
    folder = RunFolder(runs / stage_run.name)
    source = RunFolder(runs / stage_run.parent) if stage_run.parent else None
    resume = folder.config.is_file()
    # If its sweep was killed, another worker may not have noticed yet and still be working in the folder.
    with held_alone(make_writable_folder(folder.path)):
        finished = run(
            with_absolute_paths(config, registry),
            prepared,
            manager.hook,
            folder,
            resume=resume,
            force=not resume,
            source=source,
            last=stage_run.stages,
        )
    stage = finished.stages[-1]
    outcome = Outcome(
        {**stage.evaluation.metrics, **_training_loss(folder)},
        sum(stage.kept.values()),
        sum(stage.weights.values()),
        stage.seconds,
    )
    if correlations and stage_run.layers and source is not None:
        before, after = _correlations(stage_run, prepared, config, (source, folder))
        outcome = attrs.evolve(outcome, correlation_before=before, correlation_after=after)
    write_outcome(folder.path, outcome)
    return outcome


def _training_loss(folder: RunFolder) -> dict[str, float]:
    """Return the mean loss of the last epoch from the metric log; empty if that plugin is disabled."""
    lines = folder.metrics.read_text(encoding="utf-8").splitlines() if folder.metrics.exists() else []
    losses = [entry["loss"] for entry in map(json.loads, lines) if entry["event"] == "epoch_finished"]
    return {"training_loss": losses[-1]} if losses else {}


def _correlations(
    stage_run: StageRun, prepared: PreparedRun, config: RunConfig, folders: tuple[RunFolder, RunFolder]
) -> list[dict[str, float]]:
    """Measure the connections that the stage's pruning kept, in the networks before and after the stage."""
    manager = make_manager(config.no_plugins)
    criterion = partial(collect(manager).make_criterion, "correlation")
    hardware = Hardware.of(config.device, prepared.training)
    names = {layer: parameter_name(layer, prepared.views[layer]) for layer in stage_run.layers}
    tensors = load_masks(folders[1].masks).tensors
    masks = {layer: tensors[name].to(hardware.device) for layer, name in names.items()}
    measured = []
    for folder in folders:
        prepared.network.load_state_dict(load_weights(folder.model))
        measured.append(kept_correlation(prepared, hardware, Seeds(config.seed), masks, criterion))
    return measured
