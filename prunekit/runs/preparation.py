"""From a configuration to everything that is known before training: task, network, layers, plan.

``prunekit plan`` and the engine share it, so that every user error surfaces at the same early place.
It must not train, and reads no data beyond what the task checks in its ``setup``; where channels are to be pruned, one
calibration batch more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import attrs
import torch
from torch import nn

from prunekit.contracts.criterion import Criterion, observes
from prunekit.contracts.schedule import Plan, PlanRequest, Schedule, Stage, Target, check_plan
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task, Training, budget_of
from prunekit.distributed.devices import pick_device
from prunekit.errors import ConfigError
from prunekit.files.safetensors_files import some
from prunekit.layers.channels.finding import find_channel_groups
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.lookup import check_layers, find_layers
from prunekit.layers.view import LayerShape, LayerView, ViewOf
from prunekit.masks.selection import Channels
from prunekit.plugins.manager import PluginManager, view_of
from prunekit.plugins.registry import Registry
from prunekit.pruning.structure import check_fit, distribute, join_channel_groups, resolve_structure
from prunekit.runs.config import RunConfig, merge_training
from prunekit.runs.given_files import StartingPoint, read_given
from prunekit.runs.task_samples import task_samples

_SAMPLES = 2  # where channels flow depends on no batch size, but code may treat a batch of one in its own way


@attrs.frozen
class PreparedRun:
    """A run before it starts.

    Attributes:
        task: set up.
        data: one line that says what its data is.
        headline: one line: task, network, data, criterion, schedule.
        model: what is trained.
        network: the part of it that is pruned, counted and saved.
        views: the prunable layers by name, from input to output.
        structure: what is pruned, in that order.
        training: the task's settings with the user's overrides.
        plan: checked against the layers.
        make_criterion: returns a fresh criterion.
        build_model: returns a new model on the CPU; its weights depend on the root seed and the named use.
        given: masks and weights to start from.
        channel_groups: where the pattern is channels, those of the network.
    """

    task: Task
    data: str
    headline: str
    model: nn.Module
    network: nn.Module
    views: dict[str, LayerView]
    structure: tuple[Target, ...]
    training: Training
    plan: Plan
    make_criterion: Callable[[], Criterion]
    build_model: Callable[..., nn.Module]
    given: StartingPoint
    channel_groups: ChannelGroups | None = None

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """The sizes of the prunable layers, from input to output."""
        return tuple(view.shape(name) for name, view in self.views.items())


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

    Args:
        config: what the user asked for.
        manager: gives the views of the layers.
        registry: gives task, criterion and schedule.
        device: where the model's parameters are made; "meta" gives them no values.
        resumed: the run has begun already and holds what it started from; given files are not read again.
        like: an earlier run of the same task and seed: its data is not read again.

    Raises:
        CheckpointError: given weights that are not those of the network.
        ConfigError: an unknown name or option; a structure, a plan or a criterion that do not fit the
            network or each other.
        DataError: from the task.
        MaskError: given masks that do not fit the network.
    """
    task = like.task if like else registry.make_task(config.task.name, config.task.options)
    make_criterion = partial(registry.make_criterion, config.criterion.name, config.criterion.options)
    make_criterion()  # a wrong option, or device, is better known before the data is read
    pick_device(config.device)
    schedule = registry.make_schedule(config.schedule.name, config.schedule.options)
    training = merge_training(task.training(), config.training)
    seeds = Seeds(config.seed)
    data = like.data if like else task.setup(seeds)
    build = partial(build_model, task, seeds)
    model = build("initial weights", device=device)
    network = task.deployed(model)
    views = find_layers(network, view_of(manager))
    channel_groups = _channel_groups(config, task, build, seeds, view_of(manager))
    structure = _structure(config, task, network, views, channel_groups)
    given = StartingPoint() if resumed else read_given(config, network, views, channel_groups)
    plan = _plan(config, schedule, views, structure, training, given)
    _check_traces(make_criterion(), plan)
    for update in (update for stage in plan.stages for update in stage.updates):
        criterion = make_criterion()
        check_layers({name: views[name] for name in update.targets}, observed=observes(criterion))
        criterion.check(update.competition(criterion.scope), update.pattern)
        if channel_groups is not None and isinstance(update.pattern, Channels):
            channel_groups.check(update.targets)
    parts: tuple[str, ...] = (
        f"task {config.task.name}",
        data,
        f"criterion {config.criterion.name}",
        f"schedule {config.schedule.name}",
    )
    if channel_groups is not None and not config.freeze_masks:
        parts += tuple(_staying(channel_groups, views))
    files = (f"{name} {path}" for name, path in (("masks", config.masks), ("weights", config.weights)) if path)
    headline = "; ".join(filter(None, (*parts, *files)))
    return PreparedRun(
        task,
        data,
        headline,
        model,
        network,
        views,
        structure,
        training,
        plan,
        make_criterion,
        build,
        given,
        channel_groups,
    )


def _channel_groups(
    config: RunConfig, task: Task, build: Callable[..., nn.Module], seeds: Seeds, views: ViewOf
) -> ChannelGroups | None:
    """Run a copy of the network to see where its channels flow, if they are to be pruned."""
    if not isinstance(config.parsed_pattern, Channels):
        return None
    model = build("initial weights").eval()
    samples = task_samples(task, model, seeds).take(_SAMPLES)
    return find_channel_groups(task.deployed(model), samples, view_of=views)


def _check_traces(criterion: Criterion, plan: Plan) -> None:
    """Refuse to rank by training steps before there are any."""
    first = plan.stages[0]
    asked = any(update.at == 0 and update.by == "criterion" and not update.reopens for update in first.updates)
    if "training" in criterion.needs and asked:
        raise ConfigError(
            f"criterion {criterion.name!r} ranks by what training steps did, but stage {first.name!r} prunes before "
            "any; take a schedule that trains before it prunes, such as gradual, one-shot or layerwise"
        )


def build_model(task: Task, seeds: Seeds, *use: str | int, device: str = "cpu") -> nn.Module:
    """Build a task's model from a seed of its own; torch's global generator is afterwards as before."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seeds.derive(*use))
        return task.build_model()


def _staying(channel_groups: ChannelGroups, layers: Iterable[str]) -> Iterator[str]:
    """Yield the layers of which no channel can go, by reason."""
    reasons: dict[str, list[str]] = {}
    for name in layers:
        if name not in channel_groups.free:
            reasons.setdefault(channel_groups.why(name), []).append(name)
    yield from (f"all channels of {some(names)} stay ({reason})" for reason, names in reasons.items())


def _structure(
    config: RunConfig,
    task: Task,
    network: nn.Module,
    views: Mapping[str, LayerView],
    channel_groups: ChannelGroups | None,
) -> tuple[Target, ...]:
    if not views:
        raise ConfigError(f"task {config.task.name!r}: its network {type(network).__name__} has no prunable layer")
    if config.freeze_masks:
        return ()
    shapes = [view.shape(name) for name, view in views.items()]
    pattern = config.parsed_pattern
    staying = [shape.name for shape in shapes if channel_groups is not None and shape.name not in channel_groups.free]
    entries = _entries(config, task, network, shapes, staying)
    if pattern is not None:
        check_fit(entries, shapes, pattern)
    if channel_groups is None:
        return entries
    weights = {shape.name: shape.weights for shape in shapes} if _shares(config) else None
    return join_channel_groups(entries, channel_groups, weights)


def _shares(config: RunConfig) -> bool:
    """Whether layers share one density, so that those that stay dense make the others sparser."""
    return config.asked_density is not None and bool(config.distribution or config.keep_dense)


def _entries(
    config: RunConfig, task: Task, network: nn.Module, layers: Sequence[LayerShape], staying: Sequence[str]
) -> tuple[Target, ...]:
    if config.asked_density is not None and _shares(config):
        rule, dense = config.distribution or "uniform", (*config.keep_dense, *staying)
        return distribute(config.asked_density, layers, rule, dense, task.aliases, config.parsed_pattern)
    text = task.structure if config.asked_structure is None else config.asked_structure
    if not text:
        raise ConfigError(f"task {config.task.name!r} has no structure of its own; give --structure or --density")
    names = [layer.name for layer in layers]
    return resolve_structure(text, names, task.aliases, dict(network.named_modules()).keys() - {*names})


def _plan(
    config: RunConfig,
    schedule: Schedule,
    views: Mapping[str, LayerView],
    structure: Sequence[Target],
    training: Training,
    given: StartingPoint,
) -> Plan:
    shapes = [view.shape(name) for name, view in views.items()]
    dense, retraining = budget_of(training)
    if config.freeze_masks:
        return Plan((Stage("retrain", retraining),))
    plan = _with_pattern(schedule.plan(PlanRequest(shapes, structure, dense, retraining)), config)
    _check_global(plan, config, structure)
    check_plan(plan, shapes, given.densities())
    return Plan(tuple(attrs.evolve(stage, updates=()) for stage in plan.stages)) if config.dense else plan


def _with_pattern(plan: Plan, config: RunConfig) -> Plan:
    """Give the run's scope and pattern to every update that has none of its own."""
    pattern = config.parsed_pattern
    return Plan(
        tuple(
            attrs.evolve(
                stage,
                updates=tuple(
                    attrs.evolve(update, scope=update.scope or config.scope, pattern=update.pattern or pattern)
                    for update in stage.updates
                ),
            )
            for stage in plan.stages
        )
    )


def _check_global(plan: Plan, config: RunConfig, structure: Sequence[Target]) -> None:
    """Refuse a competition of layers that never meet."""
    together = [len(update.targets) for stage in plan.stages for update in stage.updates]
    if config.scope == "global" and max(together, default=1) == 1 and len(structure) > 1:
        raise ConfigError(
            f"scope 'global' lets the layers of a mask update compete, but schedule {config.schedule.name!r} prunes "
            "one layer at a time; take a schedule that prunes all at once, such as one-shot"
        )
