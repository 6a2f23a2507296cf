"""The progress display: a live bar on a terminal, plain lines elsewhere. Writes to standard error only.

It knows a run from its notifications and nothing else.
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
"""Mask updates of a stage that are told layer by layer; the metric log has them all."""


def make_plugin() -> object:
    """Return the display that suits standard error."""
    console = _Unheard(stderr=True, highlight=False)
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


@attrs.define
class PlainProgress:
    """One line for each stage, mask update and epoch."""

    console: Console
    stages: tuple[str, ...] = attrs.field(default=(), init=False)
    steps: tuple[int, ...] = attrs.field(default=(), init=False)
    updates: tuple[int, ...] = attrs.field(default=(), init=False)
    clock: "_Clock" = attrs.field(init=False)

    @hookimpl
    def prunekit_run_started(self, event: events.RunStarted) -> None:
        """Say what is to come."""
        self.stages = tuple(stage.name for stage in event.plan.stages)
        self.steps = event.steps
        self.updates = tuple(len(stage.updates) for stage in event.plan.stages)
        self.say(event.headline)
        for note in event.notes:
            self.say(f"note: {note}")
        if event.resumed_at is not None:
            stage, step = event.resumed_at
            where = (
                f"stage {stage + 1}, step {step:,}" if stage < len(self.stages) else "the end: nothing is left to do"
            )
            self.say(f"resuming at {where}")
        plan = ", ".join(f"{name} {steps:,}" for name, steps in zip(self.stages, self.steps, strict=True))
        self.say(f"{len(self.stages)} stages, in steps: {plan}")

    @hookimpl
    def prunekit_stage_started(self, event: events.StageStarted) -> None:
        """Name the stage."""
        self.clock = _Clock(event.step)
        self.say(f"[{event.index + 1}/{len(self.stages)}] {event.name}")

    @hookimpl
    def prunekit_masks_updated(self, event: events.MasksUpdated) -> None:
        """Say for each layer what is left, or, where a stage has many updates, for all together."""
        if self.updates[event.stage] > _FEW_UPDATES:
            kept = sum(layer.kept for layer in event.layers.values())
            weights = sum(layer.weights for layer in event.layers.values())
            layers = f"{len(event.layers)} layer{'s' if len(event.layers) > 1 else ''}"
            chosen = f"chosen in {event.seconds:.1f} s"
            self.say(f"  step {event.step:,}: {_kept(kept, weights)} in {layers}, {chosen}")
            return
        for name, layer in event.layers.items():
            self.say(f"  {name}: {_kept(layer.kept, layer.weights)}{_scores(layer)}")
        self.say(f"  chosen in {event.seconds:.1f} s")

    @hookimpl
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Give loss, rate and time left."""
        rate = self.clock.rate(event.step)
        left = event.steps - event.step + sum(self.steps[event.stage + 1 :])
        self.epoch(
            f"  epoch {event.epoch}, step {event.step:,}/{event.steps:,}: loss {event.loss:.4g}, "
            f"learning rate {event.learning_rate:.3g}, {rate:.3g} steps/s, {_duration(left / rate)} left"
        )

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Give the figures of the evaluation."""
        shown = (f"{name} {value:.4f}" for name, value in event.evaluation.metrics.items())
        self.say(f"  {', '.join(shown)}; weights left {event.weights_left:.4g}; {_duration(event.seconds)}")

    def epoch(self, line: str) -> None:
        """Show an epoch's line."""
        self.say(line)

    def say(self, line: str) -> None:
        """Write a line, unbroken and as it is."""
        # Not through the console, which takes as long as half a step of a small network to lay out plain text.
        try:
            print(line, file=self.console.file, flush=True)
        except BrokenPipeError:
            self.console.on_broken_pipe()


@attrs.define
class LiveProgress(PlainProgress):
    """The same lines with a bar for the stage under way; the bar shows the epochs."""

    bar: Progress | None = attrs.field(default=None, init=False)
    task: TaskID = attrs.field(init=False)

    @hookimpl
    def prunekit_stage_started(self, event: events.StageStarted) -> None:
        """Start the bar."""
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
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=event.step)

    @hookimpl
    def prunekit_stage_finished(self, event: events.StageFinished) -> None:
        """Take the bar away."""
        self._close()
        PlainProgress.prunekit_stage_finished(self, event)

    @hookimpl
    def prunekit_run_stopped(self) -> None:
        """Give the cursor back."""
        self._close()

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self.console.print(line, markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def epoch(self, line: str) -> None:
        """Show the line behind the bar."""
        if self.bar is not None:
            self.bar.update(self.task, description=line.strip())


class _Unheard(Console):
    """A console that may lose its reader: the run goes on, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Let what is said from now on go nowhere."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


@attrs.define
class _Clock:
    """Steps per second since a stage began."""

    first_step: int = 0
    began: float = attrs.field(factory=time.perf_counter)

    def rate(self, step: int) -> float:
        return (step - self.first_step) / max(time.perf_counter() - self.began, 1e-9)


def _kept(kept: int, weights: int) -> str:
    return f"keeps {kept:,} of {weights:,} ({kept / weights:.4g})"


def _scores(layer: events.LayerUpdate) -> str:
    if math.isnan(layer.mean_score):
        return ""
    return f", mean score {layer.mean_kept_score:.3g} of the kept, {layer.mean_score:.3g} of all"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
