"""All hooks of prunekit. Results come last-registered-first, so nothing may rely on their order."""

from collections.abc import Iterable, Sequence

import click
from torch import nn

from prunekit.contracts import events
from prunekit.contracts.criterion import Criterion
from prunekit.contracts.export_format import ExportFormat
from prunekit.contracts.markers import hookspec
from prunekit.contracts.schedule import Schedule
from prunekit.contracts.task import Task
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.view import LayerView


@hookspec
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return criterion classes; each has a ``name``."""
    raise NotImplementedError


@hookspec
def prunekit_schedules() -> Iterable[type[Schedule]]:
    """Return schedule classes; each has a ``name``."""
    raise NotImplementedError


@hookspec
def prunekit_tasks() -> Iterable[type[Task]]:
    """Return task classes; each has a ``name``."""
    raise NotImplementedError


@hookspec(firstresult=True)
def prunekit_layer_views(module: nn.Module) -> LayerView | Sequence[LayerView] | ChannelFollower | None:
    """Return the view of a module type (one view for each weight), its channel follower, or ``None``."""


@hookspec
def prunekit_export_formats() -> Iterable[ExportFormat]:
    """Return export formats; ``prunekit export --to`` takes their names."""
    raise NotImplementedError


@hookspec
def prunekit_commands() -> Iterable[click.Command]:
    """Return commands; ``prunekit NAME`` runs them."""
    raise NotImplementedError


@hookspec
def prunekit_run_started(event: events.RunStarted) -> None:
    """A run started or resumed."""


@hookspec
def prunekit_stage_started(event: events.StageStarted) -> None:
    """A stage started or resumed."""


@hookspec
def prunekit_masks_updated(event: events.MasksUpdated) -> None:
    """Masks were updated."""


@hookspec
def prunekit_step_finished(event: events.StepFinished) -> None:
    """An optimiser step finished; called only if a plugin implements it."""


@hookspec
def prunekit_epoch_finished(event: events.EpochFinished) -> None:
    """A pass over the training batches finished."""


@hookspec
def prunekit_stage_finished(event: events.StageFinished) -> None:
    """A stage was trained, evaluated and saved."""


@hookspec
def prunekit_run_finished(event: events.RunFinished) -> None:
    """All stages finished."""


@hookspec
def prunekit_run_stopped(event: events.RunStopped) -> None:
    """The run ended early through an error or an interruption; close open resources."""
