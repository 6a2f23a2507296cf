"""Step 2 of a preparation, look: a task's network, its prunable layers and, if they are pruned, its channels.

It must not know criteria, schedules or densities.
"""

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.errors import ConfigError
from prunekit.layers.channels.finding import find_channel_groups
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.lookup import find_layers
from prunekit.layers.view import LayerShape, LayerView, ViewOf
from prunekit.runs.preparing.task_samples import task_samples

_SAMPLES = 2  # the flow of channels is the same for any batch size, but code may treat a batch of one specially


@attrs.frozen
class FoundNetwork:
    """A task's network with its layers and channels.

    Attributes:
        build_model: returns a new model on the CPU; its weights depend on the root seed and the named use.
        model: the model that is trained.
        network: the part of the model that is pruned, counted and saved.
        views: the prunable layers by name, from input to output; at least one.
        layers: their sizes, in the same order.
        channel_groups: the channels of the network; ``None`` unless channels are pruned.
    """

    build_model: Callable[..., nn.Module]
    model: nn.Module
    network: nn.Module
    views: dict[str, LayerView]
    layers: tuple[LayerShape, ...]
    channel_groups: ChannelGroups | None


def inspect_network(
    task: Task, seeds: Seeds, view_of: ViewOf, device: str = "cpu", *, channels: bool = False
) -> FoundNetwork:
    """Build a task's model and find its layers.

    Args:
        task: with its data read.
        seeds: of the run.
        view_of: gives the view of a module.
        device: where the model's parameters are created; "meta" gives them no values.
        channels: whether to trace the channels; this runs a copy of the network on one calibration batch.

    Raises:
        ConfigError: a network without prunable layers, or whose channels cannot be traced.
    """
    build = partial(build_model, task, seeds)
    model = build("initial weights", device=device)
    network = task.deployed(model)
    views = find_layers(network, view_of)
    groups = None
    if channels:
        copy = build("initial weights").eval()
        samples = task_samples(task, copy, seeds).take(_SAMPLES)
        groups = find_channel_groups(task.deployed(copy), samples, view_of=view_of)
    if not views:
        raise ConfigError(f"the network {type(network).__name__} of task {task.name!r} has no prunable layer")
    layers = tuple(view.shape(name) for name, view in views.items())
    return FoundNetwork(build, model, network, views, layers, groups)


def build_model(task: Task, seeds: Seeds, *use: str | int, device: str = "cpu") -> nn.Module:
    """Build a task's model from a seed of its own, without changing torch's global random state.

    Args:
        task: with its data read.
        seeds: of the run.
        use: what the model is for; each use has its own seed.
        device: where the parameters are created.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seeds.derive(*use))
        return task.build_model()
