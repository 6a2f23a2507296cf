"""Masks that drop whole channels: units that must be kept or removed together, and their other parameters.

A residual network adds the outputs of several layers, so removing a unit of one of them frees nothing. This module must
not know criteria.
"""

from typing import Any

from torch import nn

from prunekit.contracts.schedule import check_density
from prunekit.layers.channels.finding import CoupledUnits, find_channel_groups, find_coupled_units
from prunekit.layers.channels.groups import by_parameter
from prunekit.layers.lookup import find_layers
from prunekit.layers.view import ViewOf
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match
from prunekit.plugins.manager import installed_views


def coupled_units(network: nn.Module, inputs: Any, *, view_of: ViewOf | None = None) -> list[CoupledUnits]:
    """Return which units must be kept or removed together, channel by channel.

    >>> network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4))
    >>> coupled_units(network, torch.zeros(1, 3))
    [{'0': (0,)}, {'0': (1,)}]

    Units that must be kept, such as those of the last layer, are not listed.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Returns:
        For each channel: layer -> numbers of the units that compute it.
    """
    return find_coupled_units(network, inputs, view_of or installed_views())


def coupled_masks(
    network: nn.Module,
    inputs: Any,
    density: float,
    *,
    view_of: ViewOf | None = None,
) -> Masks:
    """Keep a fraction of the units of each layer, those with the largest weights, so that the others can be removed.

        masks = coupled_masks(network, images, density=0.5)
        smaller = shrink(network, images, masks).network

    Coupled units (see ``coupled_units``) share one score, the sum of their squared weights. They compete with the
    coupled units of the same layers, of which ``round(density * count)`` are kept, at least one; the first among equals
    is kept. A layer whose units must all be kept gets no mask. The masks also drop biases: see ``whole_units``.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        density: kept / total units, in (0, 1].
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Raises:
        ConfigError: a density outside (0, 1].
    """
    check_density(density, "the units of a network")
    view_of = view_of or installed_views()
    layers = find_layers(network, view_of)
    channel_groups = find_channel_groups(network, inputs, view_of)
    targets = {name: density for name in layers if name in channel_groups.prunable}
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
    """Add masks of biases and normalisations, so that units without connections output exactly 0.

        masks = whole_units(network, images, prunekit.select(network, density=0.5, pattern="units"))

    Otherwise such a unit outputs a constant, and if that is uneven because of padding, one of these units cannot be
    removed. Unlike ``shrink``, these masks change the outputs of the network: use them before the training that
    follows.

    Args:
        network: any module with values; it is not changed.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        masks: masks of weights. Coupled units (see ``coupled_units``) lose their biases only if the masks drop all of
            them.
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Returns:
        The masks given, and masks of biases and of the scale and shift of normalisations: bool ``[units]``.

    Raises:
        MaskError: masks that do not fit the network.
    """
    view_of = view_of or installed_views()
    layers = find_layers(network, view_of)
    by_weight = {id(weight): mask for weight, mask in match(masks.tensors, network).values()}
    by_layer = {name: by_weight[id(view.weight)] for name, view in layers.items() if id(view.weight) in by_weight}
    channel_groups = find_channel_groups(network, inputs, view_of)
    return Masks({**masks.tensors, **channel_groups.parameter_masks(layers, by_layer)}, masks.info)
