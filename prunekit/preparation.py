"""From a configuration to everything that is known before training: task, network, layers, plan.

``prunekit plan`` and the engine share it, so that every user error surfaces at the same early place.
It must not train, and reads no data beyond what the task checks in its ``setup``.
"""

import attrs
import torch
from torch import nn

from prunekit.config import RunConfig, merge_training
from prunekit.errors import ConfigError
from prunekit.layers import LayerShape, LayerView, find_layers
from prunekit.plugins import PluginManager, view_of
from prunekit.registry import Registry
from prunekit.schedules import Plan, PlanRequest, check_plan
from prunekit.seeds import Seeds
from prunekit.structure import resolve_structure
from prunekit.tasks import Task, Training, budget_of


@attrs.frozen
class Prepared:
    """A run before it starts.

    Attributes:
        task: set up.
        data: one line of the task about its data.
        model: what is trained.
        network: the part of it that is pruned, counted and saved.
        views: the prunable layers by name, from input to output.
        structure: (layer, density) in the order of pruning.
        training: the task's settings with the user's overrides.
        plan: checked against the layers.
    """

    task: Task
    data: str
    model: nn.Module
    network: nn.Module
    views: dict[str, LayerView]
    structure: tuple[tuple[str, float], ...]
    training: Training
    plan: Plan

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """The sizes of the prunable layers, from input to output."""
        return tuple(view.shape(name) for name, view in self.views.items())


def prepare(config: RunConfig, manager: PluginManager, registry: Registry, device: str = "cpu") -> Prepared:
    """Make the task, its model and the plan, and check them.

    Args:
        config: what the user asked for.
        manager: gives the views of the layers.
        registry: gives task, criterion and schedule.
        device: where the model's parameters are made; "meta" makes none of their values.

    Returns:
        The model's initial weights depend on the seed alone; torch's global generator is as before.

    Raises:
        ConfigError: an unknown name or option, a structure or a plan that does not fit the network.
        DataError: from the task.
    """
    task = registry.make_task(config.task.name, config.task.options)
    registry.make_criterion(config.criterion.name, config.criterion.options)  # a wrong option surfaces here
    schedule = registry.make_schedule(config.schedule.name, config.schedule.options)
    training = merge_training(task.training(), config.training)
    seeds = Seeds(config.seed)
    data = task.setup(seeds)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seeds.derive("initial weights"))
        model = task.build_model()
    network = task.deployed(model)
    views = find_layers(network, view_of(manager))
    if not views:
        raise ConfigError(f"task {config.task.name!r}: its network {type(network).__name__} has no prunable layer")
    text = task.structure if config.asked_structure is None else config.asked_structure
    if not text:
        raise ConfigError(f"task {config.task.name!r} has no structure of its own; give --structure or --density")
    names = dict(network.named_modules())
    structure = resolve_structure(text, list(views), task.aliases, names.keys() - views.keys())
    shapes = [view.shape(name) for name, view in views.items()]
    dense, retraining = budget_of(training)
    plan = schedule.plan(PlanRequest(shapes, structure, dense, retraining))
    check_plan(plan, shapes)
    return Prepared(task, data, model, network, views, structure, training, plan)
