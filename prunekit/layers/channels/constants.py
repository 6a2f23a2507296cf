"""Constant units: compute the value of a unit that does not depend on the inputs, and fold it into its readers.

A unit without connections always outputs its bias. A unit that reads only constants outputs its bias plus the weighted
constants. A constant is folded into the biases of the layers that read it. If such a layer pads its inputs with zeros,
the constant contributes less at the border; then one input channel carries all constants that the layer reads. The
functions here preserve the outputs of the network and sum in double precision. This module must not know where channels
flow.
"""

import torch
from torch import Tensor

from prunekit.layers.view import LayerView


def channel_weights(view: LayerView, weight: Tensor | None = None) -> Tensor:
    """Return the weights by input channel: ``[G, outputs of a group, input channels of a group, taps]``.

    Args:
        view: view of the layer.
        weight: a tensor of the weight's shape; ``None``: the weight itself. It is copied only if its memory order
            requires it.
    """
    matrix = view.to_matrix(view.weight.detach() if weight is None else weight)
    return matrix.reshape(view.groups, view.outputs, view.fan_shape[0], -1)


def layer_constants(view: LayerView, inputs: Tensor) -> Tensor:
    """Return the output of each unit of a layer if it is constant, else NaN: float64 ``[units]``.

    Args:
        view: view of the layer.
        inputs: float64 ``[input channels]``: the value of each channel; NaN if it varies.
    """
    weights, usable, values = _by_channel(view, inputs)
    varies = ((weights != 0).any(-1) & ~usable.unsqueeze(1)).any(-1)
    sums = (weights.double().sum(-1) * values.unsqueeze(1)).sum(-1)
    constants = torch.where(varies, torch.nan, sums + biases(view))
    if not view.groups_are_positions:
        return constants.flatten()
    return torch.where((constants == constants[:1]).all(0), constants[0], torch.nan)


def fold(view: LayerView, inputs: Tensor) -> Tensor:
    """Set the weights that read constants to 0, in place, except for constants that padding makes uneven.

    Args:
        view: view of the layer.
        inputs: float64 ``[input channels]``: the value of each channel; NaN if it varies or must still be read.

    Returns:
        The contribution of the constants, to be added to the biases: float64 ``[G, outputs of a group]``.
    """
    weights, usable, values = _by_channel(view, inputs)
    contribution = (weights.double().sum(-1) * values.unsqueeze(1)).sum(-1)
    _store(view, weights.masked_fill(usable[:, None, :, None], 0))
    return contribution


def uneven(view: LayerView, inputs: Tensor) -> Tensor:
    """Return which input channels are read and have a constant that padding makes uneven: bool ``[input channels]``."""
    if not view.pads:
        return torch.zeros_like(inputs, dtype=torch.bool)
    read = (channel_weights(view) != 0).any(-1).any(1).flatten().cpu()
    return read & ~inputs.isnan() & (inputs != 0)


def merge(view: LayerView, inputs: Tensor, merged: Tensor, carrier: int) -> None:
    """Have one input channel carry several constants of a padded layer with one group, in place.

    Constant channels differ only by a factor, at the border too, so their weights can be scaled and added.

    Args:
        view: view of the layer.
        inputs: float64 ``[input channels]``: the value of each channel.
        merged: bool ``[input channels]``: the constant channels whose weights are set to 0.
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
    """Return the weights by input channel, which constants can be folded, and their values (0 for all others).

    The last two are ``[G or 1, input channels of a group]``.
    """
    constants = inputs.reshape(1 if view.groups_are_positions else view.groups, -1)
    usable = constants == 0 if view.pads else ~constants.isnan()
    return channel_weights(view).cpu(), usable, torch.where(usable, constants, 0.0)


def biases(view: LayerView) -> Tensor:
    """Return the biases of a layer, zeros if it has none: float64 ``[G, outputs of a group]``."""
    bias = view.module.bias
    if not isinstance(bias, Tensor):
        return torch.zeros(view.groups, view.outputs, dtype=torch.float64)
    return bias.detach().double().cpu().reshape(view.groups, view.outputs)


def _store(view: LayerView, weights: Tensor) -> None:
    matrix = weights.reshape(view.groups, view.outputs, view.fan)
    with torch.no_grad():
        view.weight.copy_(view.from_matrix(matrix.to(view.weight.dtype)))
