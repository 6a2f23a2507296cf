"""Which units of a network can only go together, and masks that let them.

What is added up is one channel: in a residual network a unit of one layer alone frees nothing. This module must not
know criteria.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.finding import find_layers
from prunekit.layers import ViewOf
from prunekit.masking import match
from prunekit.masks import Masks
from prunekit.plugins import installed_views
from prunekit.samples import Samples
from prunekit.schedules import check_density
from prunekit.shrinking.flow import Flow
from prunekit.shrinking.shrink import watch_copy
from prunekit.streams import Stream, Streams, by_parameter

Group = Mapping[str, tuple[int, ...]]


def coupled_units(network: nn.Module, inputs: Any, *, view_of: ViewOf | None = None) -> list[Group]:
    """Return which units stand or fall together: for each such group the units of every layer in it.

    Units that have to stay, such as those of the last layer, are in no group.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.
    """
    _, flow = _watch(network, inputs, view_of)
    return list(_groups(flow).values())


def find_streams(network: nn.Module, inputs: Any, *, view_of: ViewOf | None = None) -> Streams:
    """Return the channels of a network that can go, and what goes with them.

    Groups of units (see ``coupled_units``) that have as many units of the same layers are one stream.

    Args:
        network: any module with values; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.
    """
    copied, flow = _watch(network, inputs, view_of)
    alike: dict[tuple[tuple[str, int], ...], list[tuple[int, Group]]] = {}
    for root, group in _groups(flow).items():
        alike.setdefault(tuple((name, len(units)) for name, units in group.items()), []).append((root, group))
    streams = tuple(
        Stream({name: torch.tensor([group[name] for _, group in groups]) for name, _ in sizes})
        for sizes, groups in alike.items()
    )
    numbers = torch.full((len(flow.channels),), -1)
    roots = [root for groups in alike.values() for root, _ in groups]  # as channels are counted
    numbers[roots] = torch.arange(len(roots))
    followers = {name: numbers[channels] for name, channels in _followers(copied, flow).items()}
    followers = {name: channels for name, channels in followers.items() if bool((channels >= 0).any())}
    layers = {call.layer: len(call.outputs) for call in flow.layers}
    return Streams(streams, layers, _staying(flow), followers)


def coupled_masks(
    network: nn.Module,
    inputs: Any,
    density: float,
    *,
    view_of: ViewOf | None = None,
) -> Masks:
    """Keep a share of the units of each layer, those with the largest weights, so that what goes can be removed.

    Units that stand or fall together (see ``coupled_units``) have one score, the sum of their squared weights. They
    compete with those of the same layers, of which ``round(density * count)`` stay, at least one; of equal scores the
    first. Layers whose units all have to stay get no mask. Units go whole: see ``whole_units``.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        density: kept / total units, in (0, 1].
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Raises:
        ConfigError: a density outside (0, 1].
    """
    check_density(density, "the units of a network")
    views = installed_views() if view_of is None else view_of
    layers = find_layers(network, views)
    streams = find_streams(network, inputs, view_of=views)
    targets = {name: density for name in layers if name in streams.free}
    scores = {name: layers[name].to_matrix(layers[name].weight.detach()).double().square() for name in targets}
    chosen = streams.choose(targets, layers, scores, dict.fromkeys(targets))
    masks = {name: layers[name].from_matrix(mask).clone() for name, mask in chosen.items()}
    return Masks(by_parameter(layers, masks, streams))


def whole_units(
    network: nn.Module,
    inputs: Any,
    masks: Masks,
    *,
    view_of: ViewOf | None = None,
) -> Masks:
    """Drop also the biases of units of which no connection is kept, and what batch normalisation makes of them.

    Such a unit puts out 0 then, and no longer a constant that padding makes uneven, so that none of them has to stay.
    That changes what the network computes, unlike ``shrink``: do it before the training that follows.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        masks: of weights; where units are added up with others (see ``coupled_units``), all have to be dropped.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Returns:
        The same masks, and more, of biases and of the scale and shift of batch normalisation: bool ``[units]``.

    Raises:
        MaskError: masks that do not fit.
    """
    views = installed_views() if view_of is None else view_of
    layers = find_layers(network, views)
    by_weight = {id(weight): mask for weight, mask in match(masks.tensors, network).values()}
    by_layer = {name: by_weight[id(view.weight)] for name, view in layers.items() if id(view.weight) in by_weight}
    streams = find_streams(network, inputs, view_of=views)
    return Masks({**masks.tensors, **streams.follow(layers, by_layer)}, masks.info)


def _watch(network: nn.Module, inputs: Any, view_of: ViewOf | None) -> tuple[nn.Module, Flow]:
    views = installed_views() if view_of is None else view_of
    return watch_copy(network, Samples.of(inputs), views, trusting=True)


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
