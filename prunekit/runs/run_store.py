"""Save and restore a run: checkpoints, the results of a stage, and weights that a later stage starts from.

It must not know in which order things happen.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
import torch
from torch import Tensor

from prunekit.contracts.events import StageFinished
from prunekit.contracts.schedule import Start
from prunekit.distributed.dtensor import full_state, load_full_state, shard_like, shard_states
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.random_state import random_states, restore_random_states
from prunekit.distributed.ranks import gather_numbers, own_rank
from prunekit.errors import CheckpointError, ResumeError
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.masks.second_moments import lift
from prunekit.masks.weight_files import save_sparse, save_weights
from prunekit.masks.zeroing import MaskApplier
from prunekit.runs.active_run import ActiveRun, current_masks
from prunekit.runs.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    remove_older,
    save_checkpoint,
    write_checkpoint,
)
from prunekit.runs.checkpoints.sharded import load_any, save_sharded
from prunekit.runs.first_rank import on_first_rank
from prunekit.runs.folder import RunFolder, sync_metrics
from prunekit.runs.training.loop import Loop
from prunekit.runs.training.optimizers import match_memory_order


def take_given(run: ActiveRun) -> None:
    """Start from the given masks and weights, and save them, so that resuming does not need their files.

    Raises:
        ResumeError: when the run starts over, but the checkpoint that held them is missing.
    """
    given = run.prepared.given
    if given:
        if given.weights is not None:
            load_full_state(run.prepared.network, given.weights)
        run.state.masks = {name: mask.to(run.hardware.device) for name, mask in given.masks.items()}
        save_progress(run, 0, 0, None)
    elif run.config.masks is not None or run.config.weights is not None:
        raise ResumeError(
            f"the masks and weights that the run was given are lost, because {run.folder.checkpoints} holds no "
            "checkpoint; start the run again"
        )


def save_results(run: ActiveRun) -> None:
    """Write the masks and the deployed network as they are now; all ranks must call it."""
    _write_results(run, current_masks(run), full_state(run.prepared.network))


@on_first_rank
def _write_results(run: ActiveRun, masks: Masks, weights: Mapping[str, Tensor]) -> None:
    if run.state.masks:
        masks.save(run.folder.masks)
    if run.state.masks and run.config.sparse_model:
        save_sparse(run.folder.model, weights, masks)
    else:
        save_weights(run.folder.model, weights)


def save_progress(
    run: ActiveRun, stage: int, step: int, loop: Loop | None, random: Mapping[str, Tensor] | None = None
) -> None:
    """Write a checkpoint after ``step`` steps of a stage; all ranks must call it.

    Args:
        run: what to save.
        stage: index of the stage; the stages before it are finished.
        step: optimiser steps of the stage that are done.
        loop: gives optimiser and scaler; ``None`` before the stage begins.
        random: this rank's ``random_state`` after that step, if the generators have moved on since.

    Raises:
        CheckpointError: when it cannot be written; earlier checkpoints are kept.
    """
    state = run.state
    facts: dict[str, Any] = {
        "finished": cattrs.unstructure(state.finished[:stage]),
        "losses": state.losses,
        "skipped": state.skipped,
        "seconds": state.seconds,
        "stage_began": state.stage_began if step else state.seconds,
        "scaler": loop.scaler.state_dict() if loop else {},
    }
    if loop is not None:
        _lift_dropped(run, loop)
    states = random_states(random)
    tensors = {"model": run.prepared.model.state_dict(), "masks": state.masks, "random": states}
    tensors |= {"traces": state.traces} if state.traces else {}
    checkpoint = Checkpoint(stage, step, tensors, loop.optimizer.state_dict() if loop else None, facts)
    sync_metrics(run.folder)  # first: a checkpoint must not outlive the lines of the log before it
    keep = run.prepared.training.keep_checkpoints
    if is_fully_sharded(run.prepared.model):
        save_sharded(run.folder.checkpoints, checkpoint, keep)
    else:
        _write_whole(run.folder, checkpoint, keep)


@on_first_rank
def _write_whole(folder: RunFolder, checkpoint: Checkpoint, keep: int) -> None:
    save_checkpoint(folder.checkpoints, checkpoint, keep)


def _lift_dropped(run: ActiveRun, loop: Loop) -> None:
    """Give the unused moments of dropped weights one value; else they would show when the run was last resumed."""
    for parameter, mask in match(current_masks(run).tensors, run.prepared.network).values():
        lift(loop.optimizer, parameter, MaskApplier(mask).local_mask(parameter))


def restore(run: ActiveRun) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Restore model, masks and results from the newest readable checkpoint; all ranks must call it.

    Returns:
        The checkpoint, ``None`` if the run was stopped before its first one, and a note for each unreadable newer one.

    Raises:
        CheckpointError: when ranks find different checkpoints.
        ResumeError: when none can be read, or it does not fit the run.
    """
    folder, model = run.folder.checkpoints, run.prepared.model
    checkpoint, broken = newest_checkpoint(folder, partial(load_any, model=model))
    places = gather_numbers([-1, -1] if checkpoint is None else [checkpoint.stage, checkpoint.step])
    for rank, place in enumerate(places):
        if place != places[0]:
            raise CheckpointError(
                f"rank {rank} found a different checkpoint from rank 0 (stage and step {place}, not {places[0]}); "
                f"put {folder} where all machines see the same folder"
            )
    if checkpoint is not None:
        try:
            load_full_state(model, checkpoint.tensors["model"])
            _restore_state(run, checkpoint)
        except (RuntimeError, KeyError, cattrs.BaseValidationError) as error:
            raise ResumeError(f"the checkpoint in {folder} does not fit the run: {error}") from error
        _remove_older(run, checkpoint)
    return checkpoint, tuple(f"{problem}; using the checkpoint before it" for problem in broken)


def _restore_state(run: ActiveRun, checkpoint: Checkpoint) -> None:
    state, device, facts = run.state, run.hardware.device, checkpoint.facts
    state.masks = {name: mask.to(device) for name, mask in checkpoint.tensors["masks"].items()}
    traces = checkpoint.tensors.get("traces", {})
    weights = {name: run.prepared.views[name].weight for name in traces}
    state.traces = {name: shard_like(total, weights[name]).to(device) for name, total in traces.items()}
    state.finished = cattrs.structure(facts["finished"], list[StageFinished])
    state.losses = list(facts["losses"])
    state.skipped = facts["skipped"]
    state.began = time.perf_counter() - facts["seconds"]
    state.stage_began = facts["stage_began"]


@on_first_rank
def _remove_older(run: ActiveRun, checkpoint: Checkpoint) -> None:
    remove_older(run.folder.checkpoints, checkpoint, run.prepared.training.keep_checkpoints)


def restore_loop(run: ActiveRun, checkpoint: Checkpoint, loop: Loop) -> None:
    """Restore optimiser, scaler and random generators in the middle of a stage.

    Raises:
        ResumeError: when the checkpoint does not fit the optimiser.
    """
    assert checkpoint.optimizer is not None
    try:
        states = shard_states(checkpoint.optimizer["state"], loop.optimizer)
        loop.optimizer.load_state_dict({**checkpoint.optimizer, "state": states})
        match_memory_order(loop.optimizer)
        loop.scaler.load_state_dict(checkpoint.facts["scaler"])
        if not restore_random_states(checkpoint.tensors["random"]):  # the run had fewer ranks
            torch.manual_seed(run.seeds.derive("training", checkpoint.stage, own_rank(), checkpoint.step))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"the checkpoint does not fit the optimiser of the task: {error}") from error


def keep_weights(run: ActiveRun, start: Start) -> None:
    """Write the weights that a later stage starts from; all ranks must call it."""
    _write_weights(run.folder, start, full_state(run.prepared.model))


@on_first_rank
def _write_weights(folder: RunFolder, start: Start, weights: Mapping[str, Tensor]) -> None:
    write_checkpoint(_weights_file(folder, start), Checkpoint(0, start.step, {"model": weights}, None, {}))


def load_start_weights(run: ActiveRun, start: Start, stage: int) -> None:
    """Give the model the weights that a stage starts from.

    Raises:
        ResumeError: when the file of the weights cannot be read.
    """
    if start.kind == "fresh":
        source: Mapping[str, Tensor] = run.prepared.build_model("initial weights", stage).state_dict()
    elif start.kind in {"initial", "step"}:
        source = _kept_weights(run.folder, start)
    else:
        return
    load_full_state(run.prepared.model, source)


def _kept_weights(folder: RunFolder, start: Start) -> Mapping[str, Tensor]:
    try:
        return load_checkpoint(_weights_file(folder, start)).tensors["model"]
    except CheckpointError as error:
        raise ResumeError(f"the weights that a stage starts from are lost: {error}; start a new run") from error


def _weights_file(folder: RunFolder, start: Start) -> Path:
    return folder.checkpoints / f"weights-{start.kind}-{start.step:08d}.safetensors"
