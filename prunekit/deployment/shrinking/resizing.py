"""Resize layers and channel followers: copy what is kept, and cut the masks alike.

This module must not know why something is kept.
"""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from prunekit.deployment.shrinking.liveness import Kept, KeptUnits
from prunekit.layers.channels.constants import biases, channel_weights
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.view import LayerView, ViewOf


@attrs.frozen(eq=False)
class _Cut:
    """The numbers of the groups that a layer keeps, and of the units and input channels that each group keeps."""

    groups: Tensor
    units: Tensor
    channels: Tensor

    @classmethod
    def of(cls, view: LayerView, kept: KeptUnits) -> "_Cut":
        if view.groups == 1 or view.groups_are_positions:
            return cls(torch.arange(view.groups), kept.outputs, kept.inputs)
        groups = torch.unique(kept.outputs // view.outputs)
        return cls(groups, torch.arange(view.outputs), torch.arange(view.fan_shape[0]))

    def units_of(self, tensor: Tensor) -> Tensor:
        """Cut ``[G, units of a group, ...]``."""
        return tensor[self.groups.to(tensor.device)][:, self.units.to(tensor.device)]

    def weights_of(self, tensor: Tensor) -> Tensor:
        """Cut ``[G, units of a group, input channels of a group, taps]``."""
        return self.units_of(tensor)[:, :, self.channels.to(tensor.device)]


def remove(
    network: nn.Module, view_of: ViewOf, kept: Kept, contributions: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Remove everything that is not kept from a network, in place.

    Args:
        network: the network after its constants are folded.
        view_of: returns the view of a module.
        kept: what to keep.
        contributions: layer -> what to add to its biases: float64 ``[G, units of a group]``.
        masks: parameter name -> mask.

    Returns:
        Parameter name -> mask, cut like the parameter. Dropped weights and biases are kept from now on if something was
        merged or folded into them.
    """
    cut = dict(masks)
    for name, units in kept.layers.items():
        module = network.get_submodule(name)
        view = _view(module, view_of)
        if name in contributions or not _is_whole(view, units):
            contribution = contributions.get(name)
            cut |= _remove_units(name, view, view_of, _Cut.of(view, units), contribution, masks)
    for name, channels in kept.followers.items():
        follower = view_of(network.get_submodule(name))
        assert isinstance(follower, ChannelFollower)
        if len(channels) < follower.channels:
            follower.resize(channels)
        for key in {_key(name, parameter) for parameter in follower.per_channel} & masks.keys():
            cut[key] = masks[key][channels.to(masks[key].device)]
    return cut


def _remove_units(
    name: str, view: LayerView, view_of: ViewOf, cut: _Cut, contribution: Tensor | None, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Resize one layer, in place; return its masks, cut like its parameters, by parameter name."""
    module, weights = view.module, cut.weights_of(channel_weights(view))
    bias = biases(view) + (0.0 if contribution is None else contribution)
    weight_name, bias_name = _key(name, view.parameter), _key(name, "bias")
    has_bias = isinstance(module.bias, Tensor) or contribution is not None
    small = resized(module, view_of, *(len(numbers) for numbers in attrs.astuple(cut)), bias=has_bias)
    with torch.no_grad():
        small.weight.copy_(_from_channels(small, weights))
        if isinstance(module.bias, Tensor):
            module.bias.copy_(cut.units_of(bias).reshape(module.bias.shape))
    smaller = {}
    if weight_name in masks:
        kept = cut.weights_of(channel_weights(view, masks[weight_name]))
        smaller[weight_name] = _from_channels(small, kept | (weights != 0)).clone()
    if bias_name in masks and isinstance(module.bias, Tensor):
        kept = cut.units_of(masks[bias_name].reshape(bias.shape)).reshape(module.bias.shape)
        smaller[bias_name] = kept | (module.bias.detach() != 0)
    return smaller


def _key(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter


def _is_whole(view: LayerView, kept: KeptUnits) -> bool:
    times = 1 if view.groups_are_positions else view.groups
    return (len(kept.inputs), len(kept.outputs)) == (times * view.fan_shape[0], times * view.outputs)


def resized(module: nn.Module, view_of: ViewOf, groups: int, outputs: int, channels: int, *, bias: bool) -> LayerView:
    """Resize a layer and return its new view; see ``LayerView.resize``."""
    _view(module, view_of).resize(groups, outputs, channels, bias=bias)
    return _view(module, view_of)


def _view(module: nn.Module, view_of: ViewOf) -> LayerView:
    view = view_of(module)
    assert isinstance(view, LayerView)
    return view


def _from_channels(view: LayerView, tensor: Tensor) -> Tensor:
    return view.from_matrix(tensor.reshape(view.groups, view.outputs, view.fan))
