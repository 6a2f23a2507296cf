"""The check of a listener, a plugin that implements notification hooks.

It sends the events of made-up runs; nothing is trained. It must not know how a run works.
"""

import inspect
import tempfile
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import attrs

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.events import (
    EpochFinished,
    LayerUpdate,
    MasksUpdated,
    RunFinished,
    RunStarted,
    RunStopped,
    StageFinished,
    StageStarted,
    StepFinished,
)
from prunekit.contracts.schedule import Budget, Grow, MaskUpdate, Plan, Stage
from prunekit.errors import PrunekitError
from prunekit.plugins.manager import PluginManager, Source

_HOOKS: dict[type, str] = {
    RunStarted: "prunekit_run_started",
    StageStarted: "prunekit_stage_started",
    MasksUpdated: "prunekit_masks_updated",
    StepFinished: "prunekit_step_finished",
    EpochFinished: "prunekit_epoch_finished",
    StageFinished: "prunekit_stage_finished",
    RunFinished: "prunekit_run_finished",
    RunStopped: "prunekit_run_stopped",
}


def check_listener(plugin: Any) -> None:
    """Check that a listener accepts the events of a run, of a resumed run, and of a run that stops.

        class Curve:
            @prunekit.hookimpl
            def prunekit_stage_finished(self, event):
                print(event.weights_left, event.evaluation.value)

        check_listener(Curve)

    The events have a temporary run folder, which exists; listeners may write to it.

    Args:
        plugin: as an entry point names it: a class or a function that returns the plugin, called once for each run; or
            a module or an object, which gets the events of all runs.

    Raises:
        AssertionError: the plugin implements no notification hook or one with wrong arguments, a hook raises an error,
            or a hook changes its event.
    """
    name = getattr(plugin, "__name__", type(plugin).__name__)
    with tempfile.TemporaryDirectory() as folder:
        for run, events in _RUNS.items():
            manager = _manager_with(plugin, name)
            for event in events(Path(folder)):
                _send(manager, event, f"{name}.{_HOOKS[type(event)]}", run)


def _manager_with(plugin: Any, name: str) -> PluginManager:
    """Return a manager of this plugin alone, which is made anew if the plugin is a class or a function."""
    manager = PluginManager()
    try:
        made = plugin() if inspect.isclass(plugin) or inspect.isfunction(plugin) else plugin
    except Exception as error:
        raise AssertionError(f"{name} cannot be made: {type(error).__name__}: {error}") from error
    source = Source(name, getattr(made, "__module__", name))
    try:
        manager.add(made, source)
    except PrunekitError as error:
        # Disabling the plugin helps its users, not its author.
        raise AssertionError(str(error).removesuffix(f"; disable it with --no-plugin {name}")) from error
    if not manager.hooks_of(name) & manager.notifications:
        hooks = ", ".join(sorted(manager.notifications))
        raise AssertionError(f"{name} implements no notification hook; a listener implements at least one of {hooks}")
    return manager


def _send(manager: PluginManager, event: Any, hook: str, run: str) -> None:
    before = repr(event)
    try:
        getattr(manager.hook, _HOOKS[type(event)])(event=event)
    except Exception as error:
        cause = error.__cause__ or error
        raise AssertionError(f"{hook} failed in {run}: {type(cause).__name__}: {cause}") from error
    assert repr(event) == before, f"{hook} changes its event in {run}; copy what you change"


_WEIGHTS = 200
_KEPT = 50
_LAYERS = {"conv": 72, "fc": _WEIGHTS}
_STEPS = 4  # of each stage
_UPDATE = MaskUpdate(0.0, {"fc": 0.25})
_REOPEN = MaskUpdate(0.5, {"fc": 1.0}, grow=Grow("random"))
_PLAN = Plan(
    (
        Stage("dense", Budget(_STEPS, "steps")),
        Stage("pruned", Budget(_STEPS, "steps"), (_UPDATE, _REOPEN, attrs.evolve(_UPDATE, at=1.0))),
    )
)


def _stage_finished(index: int) -> StageFinished:
    kept, requested = (dict(_LAYERS), {}) if index == 0 else ({**_LAYERS, "fc": _KEPT}, {"fc": 0.25})
    evaluation = Evaluation("accuracy", {"accuracy": 0.9, "loss": nan}, {"accuracy": 0.01})
    return StageFinished(index, _PLAN.stages[index].name, requested, kept, dict(_LAYERS), evaluation, 1.5)


def _updates() -> Iterator[MasksUpdated]:
    """Yield three updates: prune, let all connections back (without scores), prune again."""
    pruned = LayerUpdate(_KEPT / _WEIGHTS, _KEPT, _WEIGHTS, 0.5, 0.2)
    reopened = LayerUpdate(1.0, _WEIGHTS, _WEIGHTS, nan, nan)
    for step, update in ((0, pruned), (2, reopened), (4, pruned)):
        yield MasksUpdated(1, step, {"fc": update}, 0.01)


def _stage(index: int, first: int = 0) -> Iterator[Any]:
    """Yield the events of a stage from the step after ``first`` on."""
    updates = {update.step: update for update in _updates()} if index == 1 else {}
    yield StageStarted(index, _PLAN.stages[index].name, _STEPS, first)
    if first == 0 and 0 in updates:
        yield updates[0]
    for step in range(first + 1, _STEPS + 1):
        yield StepFinished(index, step, _STEPS)
        if step % 2 == 0:
            yield EpochFinished(index, step // 2, step, _STEPS, loss=0.7, learning_rate=0.1, seconds=0.2, skipped=1)
        if step in updates:
            yield updates[step]
    yield _stage_finished(index)


def _started(folder: Path, resumed_at: tuple[int, int] | None) -> RunStarted:
    notes = ("a damaged checkpoint was skipped",) if resumed_at else ()
    return RunStarted(folder, "task toy; 272 prunable weights; cpu", _PLAN, (_STEPS, _STEPS), resumed_at, notes)


def _finished(folder: Path) -> RunFinished:
    return RunFinished(folder, (_stage_finished(0), _stage_finished(1)), 3.0)


def _whole_run(folder: Path) -> Iterator[Any]:
    yield from (_started(folder, None), *_stage(0), *_stage(1), _finished(folder))


def _run_resumed_within_a_stage(folder: Path) -> Iterator[Any]:
    yield from (_started(folder, (1, 3)), *_stage(1, 3), _finished(folder))


def _run_resumed_after_its_last_step(folder: Path) -> Iterator[Any]:
    """Yield the events of a run that was killed after it had reported a stage: it reports the stage again."""
    yield from (_started(folder, (1, _STEPS)), *_stage(1, _STEPS), _finished(folder))


def _finished_run_resumed(folder: Path) -> Iterator[Any]:
    yield from (_started(folder, (2, 0)), _finished(folder))


def _stopped_run(folder: Path) -> Iterator[Any]:
    started, first, *_ = _stage(1)
    yield from (_started(folder, None), *_stage(0), started, first, _stopped(folder))


def _run_stopped_before_it_starts(folder: Path) -> Iterator[Any]:
    yield _stopped(folder)


def _stopped(folder: Path) -> RunStopped:
    return RunStopped(folder, "NotFiniteError: the loss is NaN or infinite")


_RUNS = {
    "a whole run": _whole_run,
    "a run resumed within a stage": _run_resumed_within_a_stage,
    "a run resumed after the last step of a stage": _run_resumed_after_its_last_step,
    "a finished run that is resumed": _finished_run_resumed,
    "a stopped run": _stopped_run,
    "a run that stops before it starts": _run_stopped_before_it_starts,
}
