"""From a configuration to everything that is known before training, in four steps: choose, look, read, plan.

``prunekit plan`` and the engine share it, so every user error surfaces at the same early point. It must not train, and
it reads no data except what the task reads in ``setup`` and, if channels are pruned, one calibration batch.
"""

from collections.abc import Callable, Iterable, Iterator

import attrs
from torch import nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.schedule import Plan, Target
from prunekit.contracts.task import Task
from prunekit.contracts.training import Training
from prunekit.files.safetensors_files import some
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.view import LayerShape, LayerView
from prunekit.masks.patterns import Channels
from prunekit.plugins.manager import PluginManager, view_of
from prunekit.plugins.registry import Registry
from prunekit.runs.config import RunConfig
from prunekit.runs.preparing.choices import choose_plugins
from prunekit.runs.preparing.given_files import StartingPoint, read_given
from prunekit.runs.preparing.network import inspect_network
from prunekit.runs.preparing.planning import plan_run


@attrs.frozen
class PreparedRun:
    """A run before it starts.

    Attributes:
        task: with its data read.
        data: one line that describes the task's data.
        headline: one line: task, network, data, criterion, schedule.
        model: the model that is trained.
        network: the part of the model that is pruned, counted and saved.
        views: the prunable layers by name, from input to output.
        layers: their sizes, in the same order.
        structure: the layers to prune with their densities, in that order.
        training: the task's settings with the user's overrides.
        plan: checked against the layers.
        make_criterion: returns a fresh criterion.
        build_model: returns a new model on the CPU; its weights depend on the root seed and the named use.
        given: masks and weights to start from.
        channel_groups: the channels of the network; ``None`` unless channels are pruned.
    """

    task: Task
    data: str
    headline: str
    model: nn.Module
    network: nn.Module
    views: dict[str, LayerView]
    layers: tuple[LayerShape, ...]
    structure: tuple[Target, ...]
    training: Training
    plan: Plan
    make_criterion: Callable[[], Criterion]
    build_model: Callable[..., nn.Module]
    given: StartingPoint
    channel_groups: ChannelGroups | None = None


def prepare(
    config: RunConfig,
    manager: PluginManager,
    registry: Registry,
    device: str = "cpu",
    *,
    resumed: bool = False,
    like: PreparedRun | None = None,
) -> PreparedRun:
    """Make the task, its model and the plan, and check them.

        manager = make_manager()
        prepared = prepare(build_config(recipe), manager, collect(manager))

    Args:
        config: what the user requested.
        manager: gives the views of the layers.
        registry: gives task, criterion and schedule.
        device: where the model's parameters are created; "meta" gives them no values.
        resumed: whether the run has already begun; its checkpoint replaces the given files, which are not read again.
        like: an earlier run of the same task and seed; its data is not read again.

    Raises:
        CheckpointError: given weights that do not belong to the network.
        ConfigError: an unknown name or option; a structure, plan or criterion that does not fit the network or the
            others.
        DataError: from the task.
        MaskError: given masks that do not fit the network.
    """
    pattern = config.parsed_pattern
    chosen = choose_plugins(config, registry, (like.task, like.data) if like else None)
    found = inspect_network(chosen.task, chosen.seeds, view_of(manager), device, channels=isinstance(pattern, Channels))
    given = StartingPoint() if resumed else read_given(config, found.network, found.views, found.channel_groups)
    planned = plan_run(config, chosen, found, given.densities())
    return PreparedRun(
        task=chosen.task,
        data=chosen.data,
        headline=_headline(config, chosen.data, found.views, found.channel_groups),
        model=found.model,
        network=found.network,
        views=found.views,
        layers=found.layers,
        structure=planned.structure,
        training=chosen.training,
        plan=planned.plan,
        make_criterion=chosen.make_criterion,
        build_model=found.build_model,
        given=given,
        channel_groups=found.channel_groups,
    )


def _headline(config: RunConfig, data: str, layers: Iterable[str], channel_groups: ChannelGroups | None) -> str:
    parts = [
        f"task {config.task.name}",
        data,
        f"criterion {config.criterion.name}",
        f"schedule {config.schedule.name}",
    ]
    if channel_groups is not None and not config.freeze_masks:
        parts += _unpruned(channel_groups, layers)
    parts += [f"{name} {path}" for name, path in (("masks", config.masks), ("weights", config.weights)) if path]
    return "; ".join(filter(None, parts))


def _unpruned(channel_groups: ChannelGroups, layers: Iterable[str]) -> Iterator[str]:
    """Yield one clause for each reason why layers keep all their channels."""
    reasons: dict[str, list[str]] = {}
    for name in layers:
        if name not in channel_groups.prunable:
            reasons.setdefault(channel_groups.reason_kept(name), []).append(name)
    yield from (f"no channel of {some(names)} can be removed ({reason})" for reason, names in reasons.items())
