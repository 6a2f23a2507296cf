"""Find the channel groups of a network: channels that are kept or removed together.

It must not know criteria.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.layers.channels.flow import Flow
from prunekit.layers.channels.groups import ChannelGroup, ChannelGroups
from prunekit.layers.channels.trace import watch_copy
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf

Group = Mapping[str, tuple[int, ...]]


def find_groups(network: nn.Module, inputs: Any, view_of: ViewOf) -> list[Group]:
    """Return which units stand or fall together: for each such group the units of every layer in it.

    Units that have to stay, such as those of the last layer, are in no group.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers.
    """
    _, flow = _watch(network, inputs, view_of)
    return list(_groups(flow).values())


def find_channel_groups(network: nn.Module, inputs: Any, view_of: ViewOf) -> ChannelGroups:
    """Return the channels of a network that can go, and what goes with them.

    Groups of units (see ``find_groups``) that have as many units of the same layers are one stream.

    Args:
        network: any module with values; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers.
    """
    copied, flow = _watch(network, inputs, view_of)
    alike: dict[tuple[tuple[str, int], ...], list[tuple[int, Group]]] = {}
    for root, group in _groups(flow).items():
        alike.setdefault(tuple((name, len(units)) for name, units in group.items()), []).append((root, group))
    channel_groups = tuple(
        ChannelGroup({name: torch.tensor([group[name] for _, group in groups]) for name, _ in sizes})
        for sizes, groups in alike.items()
    )
    numbers = torch.full((len(flow.channels),), -1)
    roots = [root for groups in alike.values() for root, _ in groups]  # as channels are counted
    numbers[roots] = torch.arange(len(roots))
    followers = {name: numbers[channels] for name, channels in _followers(copied, flow).items()}
    followers = {name: channels for name, channels in followers.items() if bool((channels >= 0).any())}
    layers = {call.layer: len(call.outputs) for call in flow.layers}
    return ChannelGroups(channel_groups, layers, _staying(flow), followers)


def _watch(network: nn.Module, inputs: Any, view_of: ViewOf) -> tuple[nn.Module, Flow]:
    return watch_copy(network, Samples.of(inputs), view_of, trusting=True)


def _outputs(flow: Flow) -> dict[str, Tensor]:
    """Return layer -> the root of each of its units."""
    # Of several calls the first; they make the same channels.
    return {call.layer: flow.channels.roots(call.outputs) for call in reversed(flow.layers)}


def _groups(flow: Flow) -> dict[int, Group]:
    """Return the root of each channel that can go -> the units that make it."""
    stay = flow.channels.kept()
    groups: dict[int, dict[str, list[int]]] = {}
    for name, roots in reversed(_outputs(flow).items()):
        for unit, root in enumerate(roots.tolist()):
            if root not in stay:
                groups.setdefault(root, {}).setdefault(name, []).append(unit)
    return {root: {name: tuple(units) for name, units in group.items()} for root, group in sorted(groups.items())}


def _staying(flow: Flow) -> dict[str, str]:
    """Return the layers of which no unit can go -> why: what holds for most of its units."""
    stay = flow.channels.kept()
    reasons = {name: [stay.get(root) for root in roots.tolist()] for name, roots in _outputs(flow).items()}
    most = {name: Counter(why).most_common(1)[0][0] for name, why in reasons.items() if None not in why}
    return {name: why for name, why in most.items() if why is not None}


def _followers(network: nn.Module, flow: Flow) -> dict[str, Tensor]:
    """Return what goes with channels: parameter -> the root of each of its entries, of its shape."""
    found = {}
    views = {call.layer: call.view for call in flow.layers}
    for name, roots in _outputs(flow).items():
        bias = views[name].module.bias
        if isinstance(bias, Tensor):
            positions = views[name].groups_are_positions
            found[f"{name}.bias"] = roots.expand(bias.shape) if positions else roots.reshape(bias.shape)
    for norm in flow.norms:
        for name, _ in network.get_submodule(norm.norm).named_parameters():
            found[f"{norm.norm}.{name}"] = flow.channels.roots(norm.channels)
    return found
