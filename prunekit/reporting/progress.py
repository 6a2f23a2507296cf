"""The progress display on standard error: a live bar in a terminal, plain lines elsewhere.

This module must not know more about a run than its notifications.
"""

import math
import os
import time
from datetime import timedelta

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from prunekit.contracts import events
from prunekit.contracts.markers import hookimpl

_FEW_UPDATES = 3
"""Mask updates up to which a stage reports each layer; the metric log always has all layers."""


def make_plugin() -> object:
    """Return the display for standard error: live in a terminal, plain elsewhere."""
    console = _DetachableConsole(stderr=True, highlight=False)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


@attrs.define
class PlainProgress:
    """Prints one line per stage, mask update and epoch.

    Attributes:
        console: where to print.
        stages: names of the stages.
        steps: number of steps of each stage.
        updates: number of mask updates of each stage.
        clock: the speed of the current stage.
    """

    console: Console
    stages: tuple[str, ...] = attrs.field(default=(), init=False)
    steps: tuple[int, ...] = attrs.field(default=(), init=False)
    updates: tuple[int, ...] = attrs.field(default=(), init=False)
    clock: "_Clock" = attrs.field(init=False)

    @hookimpl
    def prunekit_run_started(self, event: events.RunStarted) -> None:
        """Print the run, its notes and its stages."""
        self.stages = tuple(stage.name for stage in event.plan.stages)
        self.steps = event.steps
        self.updates = tuple(len(stage.updates) for stage in event.plan.stages)
        self.say(event.headline)
        for note in event.notes:
            self.say(f"note: {note}")
        if event.resumed_at is not None:
            stage, step = event.resumed_at
            where = (
                f"stage {stage + 1}, step {step:,}" if stage < len(self.stages) else "the end: all stages are finished"
            )
            self.say(f"resuming at {where}")
        plan = ", ".join(f"{name} {steps:,}" for name, steps in zip(self.stages, self.steps, strict=True))
        self.say(f"{len(self.stages)} stages, in steps: {plan}")

    @hookimpl
    def prunekit_stage_started(self, event: events.StageStarted) -> None:
        """Print the name of the stage."""
        self.clock = _Clock(event.step)
        self.say(f"[{event.index + 1}/{len(self.stages)}] {event.name}")

    @hookimpl
    def prunekit_masks_updated(self, event: events.MasksUpdated) -> None:
        """Print the kept weights of each layer, or of all layers together if the stage has many updates."""
        if self.updates[event.stage] > _FEW_UPDATES:
            kept = sum(layer.kept for layer in event.layers.values())
            weights = sum(layer.weights for layer in event.layers.values())
            layers = f"{len(event.layers)} layer{'s' if len(event.layers) > 1 else ''}"
            chosen = f"updated in {event.seconds:.1f} s"
            self.say(f"  step {event.step:,}: {_kept(kept, weights)} in {layers}, {chosen}")
            return
        for name, layer in event.layers.items():
            self.say(f"  {name}: {_kept(layer.kept, layer.weights)}{_scores(layer)}")
        self.say(f"  masks updated in {event.seconds:.1f} s")

    @hookimpl
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Print the loss, the learning rate and the remaining time."""
        rate = self.clock.rate(event.step)
        left = event.steps - event.step + sum(self.steps[event.stage + 1 :])
        self.epoch(
            f"  epoch {event.epoch}, step {event.step:,}/{event.steps:,}: loss {event.loss:.4g}, "
            f"learning rate {event.learning_rate:.3g}, {rate:.3g} steps/s, {_duration(left / rate)} remaining"
        )

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Print the metrics of the evaluation."""
        shown = (f"{name} {value:.4f}" for name, value in event.evaluation.metrics.items())
        self.say(f"  {', '.join(shown)}; weights left {event.weights_left:.4g}; {_duration(event.seconds)}")

    def epoch(self, line: str) -> None:
        """Show an epoch's line."""
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line without wrapping or markup."""
        # Not through the console, whose layout of plain text takes as long as half a step of a small network.
        try:
            print(line, file=self.console.file, flush=True)
        except BrokenPipeError:
            self.console.on_broken_pipe()


@attrs.define
class LiveProgress(PlainProgress):
    """Prints the same lines, except those of epochs, above a bar for the current stage; the bar shows the epoch.

    Attributes:
        bar: ``None`` before the first stage.
        task: the bar's task.
    """

    bar: Progress | None = attrs.field(default=None, init=False)
    task: TaskID = attrs.field(init=False)

    @hookimpl
    def prunekit_stage_started(self, event: events.StageStarted) -> None:
        """Start a bar for the stage."""
        PlainProgress.prunekit_stage_started(self, event)
        self.bar = Progress(
            TextColumn("  "),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=event.steps, completed=event.step)
        self.bar.start()

    @hookimpl
    def prunekit_step_finished(self, event: events.StepFinished) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=event.step)

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Remove the bar and print the metrics."""
        self._close()
        PlainProgress.prunekit_stage_finished(self, event)

    @hookimpl
    def prunekit_run_stopped(self) -> None:
        """Remove the bar, which restores the cursor."""
        self._close()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def epoch(self, line: str) -> None:
        """Show the line beside the bar."""
        if self.bar is not None:
            self.bar.update(self.task, description=line.strip())


class _DetachableConsole(Console):
    """A console whose reader may exit: the run continues, whereas rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


@attrs.define
class _Clock:
    """Measures steps per second since a stage began."""

    first_step: int = 0
    began: float = attrs.field(factory=time.perf_counter)

    def rate(self, step: int) -> float:
        return (step - self.first_step) / max(time.perf_counter() - self.began, 1e-9)


def _kept(kept: int, weights: int) -> str:
    return f"keeps {kept:,} of {weights:,} ({kept / weights:.4g})"


def _scores(layer: events.LayerUpdate) -> str:
    if math.isnan(layer.mean_score):
        return ""
    return f", mean score {layer.mean_kept_score:.3g} (kept), {layer.mean_score:.3g} (all)"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
