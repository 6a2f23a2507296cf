"""One run: open its folder, then carry out the stages of its plan, one after another.

A stage: mask updates, start weights, training under the masks, evaluation, results, notification, checkpoint.
Everything that can be checked without training was checked before this module takes its first step.
"""

import pluggy
from torch import nn

from prunekit.contracts import events
from prunekit.distributed.ddp import parallel
from prunekit.distributed.random_state import seed_all
from prunekit.distributed.ranks import own_rank, rank_count, wait_for_all
from prunekit.plugins import hookspecs
from prunekit.runs.active_run import ActiveRun, begin_traces, check_finite, current_masks, summing_traces
from prunekit.runs.checkpoints.checkpoint import Checkpoint
from prunekit.runs.config import RunConfig
from prunekit.runs.fault_messages import add_next_step, explained
from prunekit.runs.folder import RunFolder
from prunekit.runs.interruption import Interruption, raise_if_any_rank_requested
from prunekit.runs.opening import Opened, resume_run, start_run
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.run_store import load_start_weights, restore_loop, save_progress, save_results
from prunekit.runs.shard_model import shard_model
from prunekit.runs.stages.emergency_checkpoint import EmergencyCheckpoint
from prunekit.runs.stages.evaluation import evaluate
from prunekit.runs.stages.losses import LossReader
from prunekit.runs.stages.mask_updates import update_masks
from prunekit.runs.stages.stage import StageTraining
from prunekit.runs.stages.stage_plan import PlannedStage, planned_stages
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.loop import Loop, epoch_steps
from prunekit.runs.training.optimizers import fuse


def run(
    config: RunConfig,
    prepared: PreparedRun,
    hook: pluggy.HookRelay,
    folder: RunFolder,
    *,
    resume: bool = False,
    force: bool = False,
    source: RunFolder | None = None,
    last: int | None = None,
    interruption: Interruption | None = None,
) -> events.RunFinished:
    """Carry out a plan; masks, model, metrics and checkpoints are in the run folder afterwards.

        prepared = prepare(config, manager, registry)
        finished = run(config, prepared, manager.hook, RunFolder(Path("runs/first")))

    Args:
        config: what the user requested.
        prepared: task, model, layers and plan, all checked.
        hook: notified of everything that happens.
        folder: where to write.
        resume: continue from the newest readable checkpoint in the folder.
        force: overwrite a run that is in the folder.
        source: another run whose finished stages are the first ones of this run; they are taken over, and the later
            stages give the same bytes as without it.
        last: carry out only this many stages of the plan; ``None``: all.
        interruption: whether the user has requested a stop.

    Raises:
        Interrupted: when the user has requested a stop; there is a checkpoint.
        PrunekitError: a loss that is NaN or infinite, a full disk, a checkpoint that does not fit.
    """
    hardware = Hardware.of(config.device, prepared.training)
    hook = hook if own_rank() == 0 else _silent_hook()
    active = ActiveRun(config, prepared, folder, hardware, hook, interruption or Interruption())
    try:
        _place_model(active)
        with hardware.products():
            stages = _stages(active)
            opened = resume_run(active) if resume else start_run(active, source, force=force)
            return _run_stages(active, stages, opened, last)
    except BaseException as error:
        shown = explained(error, active)
        add_next_step(shown, folder)
        _notify_stopped(active, shown)
        if shown is error:
            raise
        raise shown from error


def _run_stages(run: ActiveRun, stages: list[PlannedStage], opened: Opened, last: int | None) -> events.RunFinished:
    """Carry out the stages that are not finished yet, up to number ``last``."""
    checkpoint, notes = opened
    _notify_started(run, stages, checkpoint, notes)
    called = run.hardware.callable(parallel(run.prepared.model))
    for planned in stages[checkpoint.stage if checkpoint else 0 : last]:
        _run_stage(run, planned, called, _checkpoint_within(planned, checkpoint))
    finished = events.RunFinished(run.folder.path, tuple(run.state.finished), run.state.seconds)
    run.hook.prunekit_run_finished(event=finished)
    return finished


def _run_stage(run: ActiveRun, planned: PlannedStage, called: nn.Module, checkpoint: Checkpoint | None) -> None:
    """Carry out one stage, or the rest of it after a checkpoint."""
    raise_if_any_rank_requested(run.interruption)
    index, first = planned.index, checkpoint.step if checkpoint else 0
    event = events.StageStarted(index, planned.name, planned.steps, first)
    run.hook.prunekit_stage_started(event=event)
    seed_all(run.seeds.derive("training", index, *([own_rank()] if own_rank() else [])))
    wait_for_all()  # the first rank may have written weights that all ranks read
    if checkpoint is None:
        run.state.losses, run.state.stage_began = [], run.state.seconds
        update_masks(run, planned, 0)
        load_start_weights(run, planned.stage.start, index)
        # A stage without steps gives the criterion nothing to sum.
        begin_traces(run, run.prepared.plan.ranked_by(index) if planned.steps else ())
    loop = _make_loop(run, called)
    if checkpoint is not None:
        restore_loop(run, checkpoint, loop)
    losses = LossReader(run, planned, loop)
    with EmergencyCheckpoint(run, index, loop, losses.read) as emergency:
        # Masks first: the criterion then sums masked gradients, like those the optimiser sees.
        with (
            current_masks(run).hold(run.prepared.network, loop.optimizer) as held,
            summing_traces(run, loop.optimizer),
        ):
            StageTraining(run, planned, loop, losses, emergency).train(held, first)
        check_finite(run, f"at the end of stage {planned.name!r}")
        run.state.finished.append(_measure(run, planned))
        save_results(run)
        # Notify, then save: if the run is killed in between, the resumed run notifies again.
        run.hook.prunekit_stage_finished(event=run.state.finished[-1])
        save_progress(run, index + 1, 0, None)


def _stages(run: ActiveRun) -> list[PlannedStage]:
    """Return the stages of the plan with their lengths in steps."""
    prepared = run.prepared
    batches = len(prepared.task.batches("train", 0, run.seeds))
    epoch_length = epoch_steps(batches, prepared.training.accumulate)
    return planned_stages(prepared.plan, prepared.training, epoch_length, pruned=run.config.freeze_masks)


def _checkpoint_within(planned: PlannedStage, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Return the checkpoint if it was written in the middle of this stage."""
    return checkpoint if checkpoint and checkpoint.optimizer and checkpoint.stage == planned.index else None


def _place_model(run: ActiveRun) -> None:
    """Move the model to the device, or shard it over the devices of all ranks."""
    if run.prepared.training.parallel == "fsdp" and rank_count() > 1:
        shard_model(run.prepared, run.hardware, run.seeds)
    else:
        run.hardware.place(run.prepared.model)


def _make_loop(run: ActiveRun, called: nn.Module) -> Loop:
    prepared, hardware = run.prepared, run.hardware
    optimizer = prepared.task.optimizer(prepared.model)
    if prepared.training.fused:
        fuse(optimizer)
    return Loop(prepared.task, called, optimizer, hardware.scaler(), prepared.training, hardware)


def _measure(run: ActiveRun, planned: PlannedStage) -> events.StageFinished:
    weights = {name: view.weight.numel() for name, view in run.prepared.views.items()}
    kept = weights | {name: int(mask.sum()) for name, mask in run.state.masks.items()}
    requested = {name: density for update in planned.stage.updates for name, density in update.targets.items()}
    evaluation = evaluate(run)
    seconds = run.state.seconds - run.state.stage_began
    return events.StageFinished(planned.index, planned.name, requested, kept, weights, evaluation, seconds)


def _notify_started(
    run: ActiveRun, stages: list[PlannedStage], checkpoint: Checkpoint | None, notes: tuple[str, ...]
) -> None:
    prepared = run.prepared
    weights = sum(view.weight.numel() for view in prepared.views.values())
    headline = f"{prepared.headline}; {weights:,} prunable weights; {run.hardware}"
    at = None if checkpoint is None else (checkpoint.stage, checkpoint.step)
    steps = tuple(planned.steps for planned in stages)
    event = events.RunStarted(run.folder.path, headline, prepared.plan, steps, at, notes)
    run.hook.prunekit_run_started(event=event)


def _notify_stopped(run: ActiveRun, error: BaseException) -> None:
    event = events.RunStopped(run.folder.path, f"{type(error).__name__}: {error}")
    try:
        run.hook.prunekit_run_stopped(event=event)
    except Exception as failure:  # noqa: BLE001 - a plugin's error must not hide what ended the run
        error.add_note(f"a plugin failed when notified of this error: {failure}")


def _silent_hook() -> pluggy.HookRelay:
    """Return a hook without listeners, for all ranks but the first."""
    manager = pluggy.PluginManager("prunekit")
    manager.add_hookspecs(hookspecs)
    return manager.hook
