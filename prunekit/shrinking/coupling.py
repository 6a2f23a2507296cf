"""Which units of a network can only go together, and masks that let them.

What is added up is one channel: in a residual network a unit of one layer alone frees nothing. This module must not
know criteria.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.finding import find_layers, parameter_name
from prunekit.layers import LayerView, ViewOf
from prunekit.masking import match
from prunekit.masks import Masks
from prunekit.patterns import kept_count
from prunekit.plugins import installed_views
from prunekit.samples import Samples
from prunekit.schedules import check_density
from prunekit.shrinking.shrink import watch_copy

Group = Mapping[str, tuple[int, ...]]


def coupled_units(network: nn.Module, inputs: Any, *, view_of: ViewOf | None = None) -> list[Group]:
    """Return which units stand or fall together: for each such group the units of every layer in it.

    Units that have to stay, such as those of the last layer, are in no group.

    Args:
        network: any module; it stays as it is.
        inputs: samples: a tensor, a tuple of arguments, or a mapping of named ones.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.
    """
    views = installed_views() if view_of is None else view_of
    _, flow = watch_copy(network, Samples.of(inputs), views, trusting=True)
    stay = flow.channels.kept()
    first_calls = {call.layer: call for call in reversed(flow.layers)}
    groups: dict[int, dict[str, list[int]]] = {}
    for name, call in reversed(first_calls.items()):
        for unit, root in enumerate(flow.channels.roots(call.outputs).tolist()):
            if root not in stay:
                groups.setdefault(root, {}).setdefault(name, []).append(unit)
    return [{name: tuple(units) for name, units in group.items()} for _, group in sorted(groups.items())]


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
    streams: dict[tuple[str, ...], list[Group]] = {}
    for group in coupled_units(network, inputs, view_of=views):
        streams.setdefault(tuple(group), []).append(group)
    kept: dict[str, Tensor] = {}
    for names, groups in streams.items():
        powers = {name: _powers(layers[name], layers[name].weight) for name in names}
        scores = [sum(float(powers[name][list(units)].sum()) for name, units in group.items()) for group in groups]
        ranked = sorted(range(len(groups)), key=lambda place: -scores[place])
        for name in names:
            kept.setdefault(name, torch.ones(len(powers[name]), dtype=torch.bool))
        for place in ranked[max(1, kept_count(density, len(groups))) :]:
            for name, units in groups[place].items():
                kept[name][list(units)] = False
    rows = {parameter_name(name, layers[name]): _mask(layers[name], units) for name, units in kept.items()}
    return whole_units(network, inputs, Masks(rows), view_of=views)


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
    copied, flow = watch_copy(network, Samples.of(inputs), views, trusting=True)
    by_weight = {id(weight): mask for weight, mask in match(masks.tensors, copied).values()}
    alive: set[int] = set(flow.channels.kept())
    for call in flow.layers:
        mask = by_weight.get(id(call.view.weight))
        units = torch.ones(len(call.outputs)) if mask is None else _powers(call.view, mask)
        alive |= set(flow.channels.roots(call.outputs[units > 0]).tolist())
    living = torch.tensor(sorted(alive), dtype=torch.int64)
    dropped = {}
    for call in flow.layers:
        kept = torch.isin(flow.channels.roots(call.outputs), living)
        if isinstance(call.view.module.bias, Tensor) and not bool(kept.all()):
            shape = call.view.module.bias.shape
            dropped[f"{call.layer}.bias"] = (
                kept.expand(shape) if call.view.groups_are_positions else kept.reshape(shape)
            )
    for norm in flow.norms:
        kept = torch.isin(flow.channels.roots(norm.channels), living)
        names = [name for name, _ in copied.get_submodule(norm.norm).named_parameters()]
        dropped |= {} if bool(kept.all()) else {f"{norm.norm}.{name}": kept for name in names}
    return Masks({**masks.tensors, **{name: kept.clone() for name, kept in dropped.items()}}, masks.info)


def _powers(view: LayerView, weight: Tensor) -> Tensor:
    """Return the sum of the squares of each unit in a tensor like the weight: float64."""
    powers = view.to_matrix(weight.detach()).double().square().sum(-1)
    return powers.sum(0) if view.groups_are_positions else powers.flatten()


def _mask(view: LayerView, units: Tensor) -> Tensor:
    """Return the mask of a layer's weight that keeps some of its units whole."""
    rows = units.expand(view.groups, -1) if view.groups_are_positions else units.reshape(view.groups, -1)
    return view.from_matrix(rows.unsqueeze(-1).expand(-1, -1, view.fan)).clone()
