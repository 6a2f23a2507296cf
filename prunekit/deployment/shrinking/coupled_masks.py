"""Which units of a network can only go together, and masks that let them.

What is added up is one channel: in a residual network a unit of one layer alone frees nothing. This module must not
know criteria.
"""

from typing import Any

from torch import nn

from prunekit.contracts.schedule import check_density
from prunekit.layers.channels.finding import Group, find_channel_groups, find_groups
from prunekit.layers.channels.groups import by_parameter
from prunekit.layers.lookup import find_layers
from prunekit.layers.view import ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.plugins.manager import installed_views


def coupled_units(network: nn.Module, inputs: Any, *, view_of: ViewOf | None = None) -> list[Group]:
    """Return which units stand or fall together: for each such group the units of every layer in it.

    Units that have to stay, such as those of the last layer, are in no group.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.
    """
    return find_groups(network, inputs, installed_views() if view_of is None else view_of)


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
    channel_groups = find_channel_groups(network, inputs, views)
    targets = {name: density for name in layers if name in channel_groups.free}
    scores = {name: layers[name].to_matrix(layers[name].weight.detach()).double().square() for name in targets}
    chosen = channel_groups.choose(targets, layers, scores, dict.fromkeys(targets))
    masks = {name: layers[name].from_matrix(mask).clone() for name, mask in chosen.items()}
    return Masks(by_parameter(layers, masks, channel_groups))


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
    channel_groups = find_channel_groups(network, inputs, views)
    return Masks({**masks.tensors, **channel_groups.follow(layers, by_layer)}, masks.info)
