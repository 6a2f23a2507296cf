"""Find which units of a network must be kept or removed together.

Two answers from one trace of the network: ``find_coupled_units`` lists, for every channel, the units that compute it;
``find_channel_groups`` sorts these channels into groups that compete with each other. This module must not know
criteria, nor which channels are removed.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.layers.channels.flow import Flow
from prunekit.layers.channels.groups import ChannelGroup, ChannelGroups
from prunekit.layers.channels.tracer import trace_channels
from prunekit.layers.samples import Samples
from prunekit.layers.view import ViewOf

# The units that compute one channel, in all layers: layer -> numbers of its units.
CoupledUnits = Mapping[str, tuple[int, ...]]


def find_coupled_units(network: nn.Module, inputs: Any, view_of: ViewOf) -> list[CoupledUnits]:
    """Return which units must be kept or removed together, channel by channel.

    Units that must be kept, such as those of the last layer, are not listed.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        view_of: returns the view of a module.
    """
    return list(_removable(_trace(network, inputs, view_of)).values())


def find_channel_groups(network: nn.Module, inputs: Any, view_of: ViewOf) -> ChannelGroups:
    """Return the channels of a network that can be removed, and the parameters that have entries for them.

    Channels that have equally many units in the same layers are one group.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        view_of: returns the view of a module.
    """
    flow = _trace(network, inputs, view_of)
    alike: dict[tuple[tuple[str, int], ...], list[tuple[int, CoupledUnits]]] = {}
    for root, coupled in _removable(flow).items():
        alike.setdefault(tuple((name, len(units)) for name, units in coupled.items()), []).append((root, coupled))
    groups = tuple(
        ChannelGroup({name: torch.tensor([coupled[name] for _, coupled in channels]) for name, _ in sizes})
        for sizes, channels in alike.items()
    )
    numbers = torch.full((len(flow.channels),), -1)
    roots = [root for channels in alike.values() for root, _ in channels]  # in the order in which channels are numbered
    numbers[roots] = torch.arange(len(roots))
    parameters = {name: numbers[entries] for name, entries in _parameter_roots(flow).items()}
    parameters = {name: entries for name, entries in parameters.items() if bool((entries >= 0).any())}
    layers = {call.layer: len(call.outputs) for call in flow.layers}
    return ChannelGroups(groups, layers, _kept_whole(flow), parameters)


def _trace(network: nn.Module, inputs: Any, view_of: ViewOf) -> Flow:
    _, flow = trace_channels(network, Samples.of(inputs), view_of, trust_sizes=True)
    return flow


def _unit_roots(flow: Flow) -> dict[str, Tensor]:
    """Return layer -> root of each of its units."""
    # The first call of a layer is enough: all its calls compute the same channels.
    return {call.layer: flow.channels.roots(call.outputs) for call in reversed(flow.layers)}


def _removable(flow: Flow) -> dict[int, CoupledUnits]:
    """Return the channels that can be removed: root -> the units that compute it."""
    kept = flow.channels.kept()
    coupled: dict[int, dict[str, list[int]]] = {}
    for name, roots in reversed(_unit_roots(flow).items()):
        for unit, root in enumerate(roots.tolist()):
            if root not in kept:
                coupled.setdefault(root, {}).setdefault(name, []).append(unit)
    return {root: {name: tuple(units) for name, units in layers.items()} for root, layers in sorted(coupled.items())}


def _kept_whole(flow: Flow) -> dict[str, str]:
    """Return the layers of which no unit can be removed: name -> the most frequent reason among its units."""
    kept = flow.channels.kept()
    reasons = {name: [kept.get(root) for root in roots.tolist()] for name, roots in _unit_roots(flow).items()}
    frequent = {name: Counter(found).most_common(1)[0][0] for name, found in reasons.items() if None not in found}
    return {name: reason for name, reason in frequent.items() if reason is not None}


def _parameter_roots(flow: Flow) -> dict[str, Tensor]:
    """Return the biases and the parameters of followers: name -> root of each entry, of the parameter's shape."""
    found = {}
    views = {call.layer: call.view for call in flow.layers}
    for name, roots in _unit_roots(flow).items():
        bias = views[name].module.bias
        if isinstance(bias, Tensor):
            positions = views[name].groups_are_positions
            found[f"{name}.bias"] = roots.expand(bias.shape) if positions else roots.reshape(bias.shape)
    for call in flow.followers:
        roots = flow.channels.roots(call.channels)
        for name in call.follower.per_channel:
            parameter = getattr(call.follower.module, name)
            # A parameter with one entry for all channels is kept whole.
            if isinstance(parameter, nn.Parameter) and parameter.dim() and len(parameter) == len(roots):
                entries = roots.reshape(-1, *[1] * (parameter.dim() - 1)).expand(parameter.shape)
                found[f"{call.module}.{name}"] = entries
    return found
