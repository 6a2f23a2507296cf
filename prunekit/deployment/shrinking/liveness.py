"""Which channels a network can do without.

Constants are folded into those that read them; then a channel that nothing reads goes, with all that made it, and what
only these units read goes, too. This module must not know how a network gets smaller.
"""

from collections.abc import Collection, Mapping

import attrs
import torch
from torch import Tensor

from prunekit.layers.channels.constants import channel_weights, fold, merge, uneven
from prunekit.layers.channels.flow import Flow, LayerCall

_LEAST = 0.1


@attrs.frozen(eq=False)
class Places:
    """What a layer keeps: the numbers of its input channels and of its units, ascending; int64."""

    inputs: Tensor
    outputs: Tensor


@attrs.frozen(eq=False)
class Kept:
    """What a network keeps.

    Attributes:
        layers: of each layer that was called.
        norms: of each batch normalisation that was called: the numbers of its channels.
        reasons: root of a channel that stays -> why.
    """

    layers: Mapping[str, Places]
    norms: Mapping[str, Tensor]
    reasons: Mapping[int, str]


def fold_constants(flow: Flow) -> dict[str, Tensor]:
    """Have the layers of a network no longer read constants, in place, where that can be.

    Returns:
        Layer -> what its constants brought, to be added to its biases: float64 ``[G, outputs of a group]``.
    """
    foldable = _foldable(flow)
    needed = _needed(flow, {call.layer for call in foldable})
    brought = {}
    for call in foldable:
        constants = call.constants.where(~_places(flow, call.inputs, needed), torch.nan)
        sums = fold(call.view, constants)
        if bool((sums != 0).any()):
            brought[call.layer] = sums
    for call in foldable:
        staying = _places(flow, call.inputs, needed)
        merged = uneven(call.view, call.constants) & ~staying
        if call.view.groups == 1 and bool(merged.any()):
            carrier = _carrier(call.constants, staying)
            merge(call.view, call.constants, merged, carrier)
            needed[int(flow.channels.roots(call.inputs[carrier]))] = ""
    return brought


def find_kept(flow: Flow) -> Kept:
    """Say what a network keeps, after its constants are folded: every layer at least one unit."""
    needed = _needed(flow, ())
    # From the last on, since what that one reads may be the unit that another one keeps.
    while empty := [call for call in flow.layers if not _places(flow, call.outputs, needed).any()]:
        flow.channels.keep(empty[-1].outputs[:1], "it is the last one of its layer")
        needed = _needed(flow, ())
    layers = {
        call.layer: Places(_numbers(flow, call.inputs, needed), _numbers(flow, call.outputs, needed))
        for call in flow.layers
    }
    norms = {call.norm: _numbers(flow, call.channels, needed) for call in flow.norms}
    return Kept(layers, norms, needed)


def _foldable(flow: Flow) -> list[LayerCall]:
    calls = flow.calls()
    return [call for call in flow.layers if calls[call.layer] == 1 and call.layer not in flow.fixed]


def _carrier(constants: Tensor, staying: Tensor) -> int:
    """Choose the input channel that brings what all uneven constants bring: the largest, or one that stays anyway.

    One that is much smaller than the largest would need large weights, which cost precision.
    """
    sizes = constants.nan_to_num(0.0).abs()
    there = sizes.where(staying, 0.0)
    return int((there if there.max() >= _LEAST * sizes.max() else sizes).argmax())


def _needed(flow: Flow, without_constants: Collection[str]) -> dict[int, str]:
    """Return the root of each channel that is read, for the outputs in the end -> who reads it.

    Args:
        flow: of the network.
        without_constants: layers that can do without the constants that they read.
    """
    needed = flow.channels.kept()
    reads = []
    for call in flow.layers:
        view = call.view
        if view.groups > 1 and not view.groups_are_positions:
            continue  # what goes in and out of a group is one channel
        read = (channel_weights(view) != 0).any(-1).any(0).cpu()
        if call.layer in without_constants:
            read &= call.constants.isnan()
        constant = uneven(view, call.constants)
        reads.append((call.layer, flow.channels.roots(call.inputs), flow.channels.roots(call.outputs), read, constant))
    grows = True
    while grows:
        before = len(needed)
        for layer, inputs, outputs, read, constant in reversed(reads):
            columns = read[_among(outputs, needed)].any(0)
            for root, is_constant in zip(inputs[columns].tolist(), constant[columns].tolist(), strict=True):
                reason = f"{layer} pads its constant with zeros" if is_constant else f"{layer} reads its channel"
                needed.setdefault(root, reason)
        grows = len(needed) > before
    return needed


def _among(roots: Tensor, needed: Mapping[int, str]) -> Tensor:
    return torch.isin(roots, torch.tensor(list(needed), dtype=torch.int64))


def _places(flow: Flow, channels: Tensor, needed: Mapping[int, str]) -> Tensor:
    """Say which places have a channel that is needed: bool."""
    return _among(flow.channels.roots(channels), needed)


def _numbers(flow: Flow, channels: Tensor, needed: Mapping[int, str]) -> Tensor:
    return _places(flow, channels, needed).nonzero().flatten()
