"""One run: the stages of a plan, one after another.

For each stage: mask updates, start weights, training under the masks, evaluation, results, checkpoint, notices.
Whatever could be known to be wrong was refused before this module takes its first step.
"""

import json
from typing import Any

import cattrs
import pluggy
import torch
from torch import nn

from prunekit.contracts import events
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.schedule import Stage, Start, to_json
from prunekit.distributed.ddp import parallel
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.random_state import seed_all
from prunekit.distributed.ranks import own_rank, rank_count, text_from_first, wait_for_all
from prunekit.errors import ConfigError
from prunekit.files.atomic import write_atomically
from prunekit.plugins import hookspecs
from prunekit.runs.checkpoints.checkpoint import Checkpoint
from prunekit.runs.config import RunConfig
from prunekit.runs.environment import environment
from prunekit.runs.fault_messages import add_way_on, in_words
from prunekit.runs.folder import RunFolder
from prunekit.runs.interruption import Interruption, ended_between_batches, obey
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.recipes import to_toml
from prunekit.runs.shard_model import shard_model
from prunekit.runs.stage import StageTraining
from prunekit.runs.state import RunState
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
    stop: Interruption | None = None,
) -> events.RunFinished:
    """Carry out a plan and leave masks, model, metrics and checkpoints in the run folder.

    Args:
        config: what the user asked for.
        prepared: task, model, layers and plan, all checked.
        hook: notified of everything that happens.
        folder: where to write.
        resume: go on from the newest good checkpoint in the folder.
        force: write over a run that is in the folder.
        source: a run whose finished stages are those that this one begins with: they are taken over, and what
            follows gives the bytes that it would give without.
        last: carry out only so many stages of the plan; ``None``: all.
        stop: says when the user asks to stop.

    Raises:
        Interrupted: when the user has asked to stop; there is a checkpoint.
        PrunekitError: a loss that is no number, a full disk, a checkpoint that does not fit.
    """
    hardware = Hardware.of(config.device, prepared.training)
    state = RunState(config, prepared, folder, hardware, stop=stop or Interruption())
    if own_rank() > 0:
        hook = _nobody()
    try:
        _place(state)
        with hardware.products():
            return _run(state, hook, resume=resume, force=force, source=source, last=last)
    except BaseException as error:
        told = in_words(error, state)
        add_way_on(told, folder)
        try:
            hook.prunekit_run_stopped(event=events.RunStopped(folder.path, f"{type(told).__name__}: {told}"))
        except Exception as failure:  # noqa: BLE001 - any plugin's; the user is to see what ended the run
            told.add_note(f"a plugin that was told of it failed: {type(failure).__name__}: {failure}")
        if told is error:
            raise
        raise told from error


def _place(state: RunState) -> None:
    """Bring the model where it is trained: onto the device, or in parts onto those of all ranks."""
    if state.prepared.training.parallel == "fsdp" and rank_count() > 1:
        shard_model(state.prepared, state.hardware, state.seeds)
    else:
        state.hardware.place(state.prepared.model)


def _nobody() -> pluggy.HookRelay:
    """Return a hook that nobody listens to: only the first of several ranks tells what happens."""
    manager = pluggy.PluginManager("prunekit")
    manager.add_hookspecs(hookspecs)
    return manager.hook


def _run(
    state: RunState, hook: pluggy.HookRelay, *, resume: bool, force: bool, source: RunFolder | None, last: int | None
) -> events.RunFinished:
    prepared, folder = state.prepared, state.folder
    batches = len(prepared.task.batches("train", 0, state.seeds))
    epoch_length = epoch_steps(batches, prepared.training.accumulate)
    stages = _stage_trainings(state, hook, epoch_length)
    if own_rank() > 0:
        pass
    elif resume:
        folder.check_plan(to_json(prepared.plan))
        folder.tidy()
    else:
        folder.create(force=force)
        if source is not None:
            folder.adopt(source)
    wait_for_all()
    checkpoint, notes = state.restore() if resume or source is not None else (None, ())
    if checkpoint is None:
        notes = ("there is no checkpoint; the run begins anew",) if resume else ()
        _begin(state)
    elif not resume:
        _describe(state)
    elif own_rank() == 0:
        folder.add_environment(_environment(state))
    weights = sum(view.weight.numel() for view in prepared.views.values())
    headline = f"{prepared.headline}; {weights:,} prunable weights; {state.hardware}"
    at = None if checkpoint is None else (checkpoint.stage, checkpoint.step)
    steps = tuple(training.steps for training in stages)
    hook.prunekit_run_started(event=events.RunStarted(folder.path, headline, prepared.plan, steps, at, notes))
    called = state.hardware.callable(parallel(prepared.model))
    for training in stages[checkpoint.stage if checkpoint else 0 : last]:
        in_middle = checkpoint if checkpoint and checkpoint.optimizer and checkpoint.stage == training.index else None
        _run_stage(training, called, in_middle)
    done = events.RunFinished(folder.path, tuple(state.finished), state.seconds)
    hook.prunekit_run_finished(event=done)
    return done


def _stage_trainings(state: RunState, hook: pluggy.HookRelay, epoch_length: int) -> list[StageTraining]:
    """Return the stages with their lengths, each with the points that later stages rewind to."""
    plan = state.prepared.plan
    trainings: list[StageTraining] = []
    for index, stage in enumerate(plan.stages):
        done = sum(training.steps for training in trainings)
        if stage.start.kind == "step" and not 0 < stage.start.step <= done:
            raise ConfigError(
                f"stage {stage.name!r} starts from step {stage.start.step}, but the stages before it take {done} steps"
            )
        steps = stage.budget.steps(epoch_length)
        wanted = {later.start.step - done: later.start for later in plan.stages if later.start.kind == "step"}
        points = {step: start for step, start in wanted.items() if 0 < step <= steps}
        trainings.append(StageTraining(state, hook, index, stage, steps, epoch_length, points))
    return trainings


def _begin(state: RunState) -> None:
    """Take what is given, and write what the run is, and the first weights where a stage goes back to them."""
    state.take_given()
    if any(stage.start.kind == "initial" for stage in state.prepared.plan.stages):
        state.keep_weights(Start("initial"))
    _describe(state)


def _describe(state: RunState) -> None:
    """Write what the run is; its recipe last, since a folder that has one can be resumed."""
    if own_rank() > 0:
        return
    folder = state.folder
    folder.write_json(folder.environment, _environment(state))
    folder.write_json(folder.plan, to_json(state.prepared.plan))
    write_atomically(folder.config, to_toml(state.config).encode())
    folder.begun()


def _environment(state: RunState) -> dict[str, Any]:
    config = state.config
    names = (config.task.name, config.criterion.name, config.schedule.name)
    return environment(config.seed, str(state.hardware), names)


def _run_stage(training: StageTraining, called: nn.Module, checkpoint: Checkpoint | None) -> None:
    state, index, stage = training.state, training.index, training.stage
    obey(state.stop)
    first = checkpoint.step if checkpoint else 0
    training.hook.prunekit_stage_started(event=events.StageStarted(index, stage.name, training.steps, first))
    seed_all(state.seeds.derive("training", index, *([own_rank()] if own_rank() else [])))
    wait_for_all()  # the first rank may have written weights that all are to read
    if checkpoint is None:
        state.losses, state.stage_began = [], state.seconds
        training.first_updates()
        state.start_weights(stage.start, index)
        # Without a step there is nothing to rank by, and the criterion is refused.
        state.begin_traces(state.prepared.plan.ranked_by(index) if training.steps else ())
    loop = _loop(state, called)
    if checkpoint is not None:
        state.restore_loop(checkpoint, loop)
    with training.rescue(loop) as rescue:
        # Masks first: what is summed is masked like what the optimiser sees.
        with (
            state.as_masks().hold(state.prepared.network, loop.optimizer) as held,
            state.tracing(loop.optimizer),
        ):
            training.train(loop, held, first, rescue)
        state.check_finite(f"at the end of stage {stage.name!r}")
        state.finished.append(_measure(state, index, stage))
        state.save_results()
        # Told before it is saved: what a run was killed before it could tell is told by the resumed one.
        training.hook.prunekit_stage_finished(event=state.finished[-1])
        state.save_checkpoint(index + 1, 0, None)


def _loop(state: RunState, called: nn.Module) -> Loop:
    prepared, hardware = state.prepared, state.hardware
    optimizer = prepared.task.optimizer(prepared.model)
    if prepared.training.fused:
        fuse(optimizer)
    return Loop(prepared.task, called, optimizer, hardware.scaler(), prepared.training, hardware)


def _measure(state: RunState, index: int, stage: Stage) -> events.StageFinished:
    views = state.prepared.views
    weights = {name: view.weight.numel() for name, view in views.items()}
    kept = weights | {name: int(mask.sum()) for name, mask in state.masks.items()}
    asked = {name: density for update in stage.updates for name, density in update.targets.items()}
    evaluation = _evaluate(state)
    return events.StageFinished(index, stage.name, asked, kept, weights, evaluation, state.seconds - state.stage_began)


def _evaluate(state: RunState) -> Evaluation:
    """Let the first rank evaluate, and all know what it found: the task's own code, so the figure of one process.

    Raises:
        KeyboardInterrupt: on all ranks, when the first one was asked to stop meanwhile.
    """
    model, hardware = state.prepared.model, state.hardware
    model.eval()
    together = is_fully_sharded(model)  # it computes only where all ranks do
    text = ""
    if own_rank() == 0 or together:
        try:
            network = state.prepared.network
            ended = ended_between_batches(state.stop, model, network) if together else state.stop.abandonable()
            with ended, torch.inference_mode(), hardware.autocast():
                found = state.prepared.task.evaluate(model, hardware.device)
            if rank_count() == 1:
                return found
            text = json.dumps(cattrs.unstructure(found))
        except KeyboardInterrupt:  # the others wait to be told
            if rank_count() == 1:
                raise
    text = text_from_first(text)
    if not text:
        state.stop.join()
        state.stop.obey()
    return cattrs.structure(json.loads(text), Evaluation)
