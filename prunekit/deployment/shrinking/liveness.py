"""Decide which channels a network needs.

Constants are first folded into the layers that read them. Then a channel that nothing reads can be removed, together
with everything that computes it; so can channels that only removed units read. This module must not know how a network
is resized.
"""

from collections.abc import Collection, Mapping

import attrs
import torch
from torch import Tensor

from prunekit.layers.channels.constants import channel_weights, fold, merge, uneven
from prunekit.layers.channels.flow import Flow, LayerCall

_LEAST = 0.1  # of the largest constant; the weights of a smaller carrier would be so large that precision is lost


@attrs.frozen(eq=False)
class KeptUnits:
    """The numbers of the input channels and of the units that a layer keeps, ascending; int64."""

    inputs: Tensor
    outputs: Tensor


@attrs.frozen(eq=False)
class Kept:
    """Everything that a network keeps.

    Attributes:
        layers: layer that was called -> the units and input channels that it keeps.
        followers: channel follower that was called -> numbers of the channels that it keeps, ascending; int64.
        reasons: root of each kept channel -> reason.
    """

    layers: Mapping[str, KeptUnits]
    followers: Mapping[str, Tensor]
    reasons: Mapping[int, str]


def fold_constants(flow: Flow) -> dict[str, Tensor]:
    """Fold constants into the layers that read them, as far as possible, by changing their weights in place.

    Returns:
        Layer -> contribution of its constants, to be added to its biases: float64 ``[G, outputs of a group]``.
    """
    foldable = _foldable(flow)
    needed = _needed(flow, {call.layer for call in foldable})
    contributions = {}
    for call in foldable:
        constants = call.input_constants.where(~_is_needed(flow, call.inputs, needed), torch.nan)
        sums = fold(call.view, constants)
        if bool((sums != 0).any()):
            contributions[call.layer] = sums
    for call in foldable:
        kept = _is_needed(flow, call.inputs, needed)
        merged = uneven(call.view, call.input_constants) & ~kept
        if call.view.groups == 1 and bool(merged.any()):
            carrier = _carrier(call.input_constants, kept)
            merge(call.view, call.input_constants, merged, carrier)
            needed[int(flow.channels.roots(call.inputs[carrier]))] = ""
    return contributions


def find_kept(flow: Flow) -> Kept:
    """Return what a network keeps after its constants are folded; every layer keeps at least one unit."""
    needed = _needed(flow, ())
    # From the last layer backwards, because the inputs of its unit may be the units that other layers keep.
    while empty := [call for call in flow.layers if not _is_needed(flow, call.outputs, needed).any()]:
        flow.channels.keep(empty[-1].outputs[:1], "it is the last unit of its layer")
        needed = _needed(flow, ())
    layers = {
        call.layer: KeptUnits(_numbers(flow, call.inputs, needed), _numbers(flow, call.outputs, needed))
        for call in flow.layers
    }
    followers = {call.module: _numbers(flow, call.channels, needed) for call in flow.followers}
    return Kept(layers, followers, needed)


def _foldable(flow: Flow) -> list[LayerCall]:
    calls = flow.calls()
    return [call for call in flow.layers if calls[call.layer] == 1 and call.layer not in flow.fixed]


def _carrier(constants: Tensor, kept: Tensor) -> int:
    """Choose the input channel that carries all uneven constants: the largest, but preferably one that is kept anyway.

    A carrier with a small constant would need large weights, which cost precision.
    """
    sizes = constants.nan_to_num(0.0).abs()
    kept_sizes = sizes.where(kept, 0.0)
    return int((kept_sizes if kept_sizes.max() >= _LEAST * sizes.max() else sizes).argmax())


def _needed(flow: Flow, without_constants: Collection[str]) -> dict[int, str]:
    """Return the channels on which the outputs of the network depend: root -> reason.

    Args:
        flow: the channels of the network.
        without_constants: layers whose reads of constants do not count.
    """
    needed = flow.channels.kept()
    reads = []
    for call in flow.layers:
        view = call.view
        if view.groups > 1 and not view.groups_are_positions:
            continue  # the inputs and outputs of a group are one channel
        read = (channel_weights(view) != 0).any(-1).any(0).cpu()
        if call.layer in without_constants:
            read &= call.input_constants.isnan()
        constant = uneven(view, call.input_constants)
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


def _is_needed(flow: Flow, channels: Tensor, needed: Mapping[int, str]) -> Tensor:
    """Return which channels are needed: bool of the shape of ``channels``."""
    return _among(flow.channels.roots(channels), needed)


def _numbers(flow: Flow, channels: Tensor, needed: Mapping[int, str]) -> Tensor:
    return _is_needed(flow, channels, needed).nonzero().flatten()
