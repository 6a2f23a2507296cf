"""What a layer puts out whatever comes in, and how the layers that read it can do without.

A unit of which no connection is left puts out its bias; so does one whose connections all come from constants, with
what they bring. A constant is folded into the biases of the layers that read it. Where zeros are padded around it, what
it brings is not the same at the border; then all constants that a layer reads are brought by one of them. Everything
here keeps the outputs of the network. Sums are in double precision. This module must not know where channels flow.
"""

import torch
from torch import Tensor

from prunekit.layers.view import LayerView


def channel_weights(view: LayerView, weight: Tensor | None = None) -> Tensor:
    """Return the weights by input channel: ``[G, outputs of a group, input channels of a group, taps]``.

    Args:
        view: of the layer.
        weight: a tensor like its weight; ``None``: the weight itself. It is not copied where its order allows.
    """
    matrix = view.to_matrix(view.weight.detach() if weight is None else weight)
    return matrix.reshape(view.groups, view.outputs, view.fan_shape[0], -1)


def layer_constants(view: LayerView, inputs: Tensor) -> Tensor:
    """Return what each unit of a layer puts out where that is a constant, NaN where it is none: float64 ``[units]``.

    Args:
        view: of the layer.
        inputs: float64, what comes in at each input channel, NaN where that varies.
    """
    weights, usable, values = _by_channel(view, inputs)
    varies = ((weights != 0).any(-1) & ~usable.unsqueeze(1)).any(-1)
    sums = (weights.double().sum(-1) * values.unsqueeze(1)).sum(-1)
    constants = torch.where(varies, torch.nan, sums + biases(view))
    if not view.groups_are_positions:
        return constants.flatten()
    return torch.where((constants == constants[:1]).all(0), constants[0], torch.nan)


def fold(view: LayerView, inputs: Tensor) -> Tensor:
    """Have a layer no longer read constants, in place, but those that padding makes uneven.

    Args:
        view: of the layer.
        inputs: float64, what comes in at each input channel, NaN where that varies or is still to be read.

    Returns:
        What the constants brought, to be added to the biases: float64 ``[G, outputs of a group]``.
    """
    weights, usable, values = _by_channel(view, inputs)
    brought = (weights.double().sum(-1) * values.unsqueeze(1)).sum(-1)
    _store(view, weights.masked_fill(usable[:, None, :, None], 0))
    return brought


def uneven(view: LayerView, inputs: Tensor) -> Tensor:
    """Say which input channels bring a constant that padding makes uneven, and are read: bool ``[input channels]``."""
    if not view.pads:
        return torch.zeros_like(inputs, dtype=torch.bool)
    read = (channel_weights(view) != 0).any(-1).any(1).flatten().cpu()
    return read & ~inputs.isnan() & (inputs != 0)


def merge(view: LayerView, inputs: Tensor, merged: Tensor, carrier: int) -> None:
    """Have a padded layer of one group read constants from one input channel instead, in place.

    They differ from that one by a factor alone, at the border too, so that their weights can be scaled and added.

    Args:
        view: of the layer.
        inputs: float64, what comes in at each input channel.
        merged: bool, the input channels that are no longer to be read, all of them constants.
        carrier: an input channel whose constant is not 0.
    """
    weights = channel_weights(view).double().cpu()
    factors = (inputs / inputs[carrier]).where(merged, 0.0)
    factors[carrier] = 1.0
    total = (weights * factors.unsqueeze(1)).sum(2)
    weights[:, :, merged] = 0
    weights[:, :, carrier] = total
    _store(view, weights)


def _by_channel(view: LayerView, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, which constants bring the same everywhere, and those: ``[G or 1, input channels of a group]``."""
    constants = inputs.reshape(1 if view.groups_are_positions else view.groups, -1)
    usable = constants == 0 if view.pads else ~constants.isnan()
    return channel_weights(view).cpu(), usable, torch.where(usable, constants, 0.0)


def biases(view: LayerView) -> Tensor:
    """Return the biases of a layer, zeros where it has none: float64 ``[G, outputs of a group]``."""
    bias = view.module.bias
    if not isinstance(bias, Tensor):
        return torch.zeros(view.groups, view.outputs, dtype=torch.float64)
    return bias.detach().double().cpu().reshape(view.groups, view.outputs)


def _store(view: LayerView, weights: Tensor) -> None:
    matrix = weights.reshape(view.groups, view.outputs, view.fan)
    with torch.no_grad():
        view.weight.copy_(view.from_matrix(matrix.to(view.weight.dtype)))
