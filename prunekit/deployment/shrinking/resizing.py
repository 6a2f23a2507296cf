"""Layers and normalisation made smaller: what stays is copied, with its masks.

This module must not know why something stays.
"""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from prunekit.deployment.shrinking.liveness import Kept, Places
from prunekit.layers.channels.constants import biases, channel_weights
from prunekit.layers.channels.norms import is_norm, resize_norm
from prunekit.layers.view import LayerView, ViewOf


@attrs.frozen(eq=False)
class _Cut:
    """The numbers of the groups of a layer that stay, and of the units and the input channels of each."""

    groups: Tensor
    units: Tensor
    channels: Tensor

    @classmethod
    def of(cls, view: LayerView, places: Places) -> "_Cut":
        if view.groups == 1 or view.groups_are_positions:
            return cls(torch.arange(view.groups), places.outputs, places.inputs)
        groups = torch.unique(places.outputs // view.outputs)
        return cls(groups, torch.arange(view.outputs), torch.arange(view.fan_shape[0]))

    def units_of(self, tensor: Tensor) -> Tensor:
        """Cut ``[G, units of a group, ...]``."""
        return tensor[self.groups.to(tensor.device)][:, self.units.to(tensor.device)]

    def weights_of(self, tensor: Tensor) -> Tensor:
        """Cut ``[G, units of a group, input channels of a group, taps]``."""
        return self.units_of(tensor)[:, :, self.channels.to(tensor.device)]


def remove(
    network: nn.Module, view_of: ViewOf, kept: Kept, brought: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Make the layers of a network smaller, in place.

    Args:
        network: after folding.
        view_of: gives the views of its layers.
        kept: what is to stay.
        brought: layer -> what to add to its biases: float64 ``[G, units of a group]``.
        masks: parameter name -> mask.

    Returns:
        Parameter name -> mask, of what is left. Where something was merged or folded into dropped weights or biases,
        they are kept now.
    """
    smaller = dict(masks)
    for name, places in kept.layers.items():
        module = network.get_submodule(name)
        view = _view(module, view_of)
        if name not in brought and _is_whole(view, places):
            continue
        cut = _Cut.of(view, places)
        weights, bias = cut.weights_of(channel_weights(view)), biases(view) + brought.get(name, 0.0)
        of_weight, of_bias = (".".join(filter(None, (name, part))) for part in (view.parameter, "bias"))
        has_bias = isinstance(module.bias, Tensor) or name in brought
        small = resized(module, view_of, *(len(numbers) for numbers in attrs.astuple(cut)), bias=has_bias)
        with torch.no_grad():
            small.weight.copy_(_from_channels(small, weights))
            if isinstance(module.bias, Tensor):
                module.bias.copy_(cut.units_of(bias).reshape(module.bias.shape))
        if of_weight in masks:
            left = cut.weights_of(channel_weights(view, masks[of_weight]))
            smaller[of_weight] = _from_channels(small, left | (weights != 0)).clone()
        if of_bias in masks and isinstance(module.bias, Tensor):
            left = cut.units_of(masks[of_bias].reshape(bias.shape)).reshape(module.bias.shape)
            smaller[of_bias] = left | (module.bias.detach() != 0)
    for name, channels in kept.norms.items():
        norm = network.get_submodule(name)
        assert is_norm(norm)
        resize_norm(norm, channels)
        for key in {f"{name}.weight", f"{name}.bias"} & masks.keys():
            smaller[key] = masks[key][channels.to(masks[key].device)]
    return smaller


def _is_whole(view: LayerView, places: Places) -> bool:
    times = 1 if view.groups_are_positions else view.groups
    return (len(places.inputs), len(places.outputs)) == (times * view.fan_shape[0], times * view.outputs)


def resized(module: nn.Module, view_of: ViewOf, groups: int, outputs: int, channels: int, *, bias: bool) -> LayerView:
    """Resize a layer and return the view of what it is now; see ``LayerView.resize``."""
    _view(module, view_of).resize(groups, outputs, channels, bias=bias)
    return _view(module, view_of)


def _view(module: nn.Module, view_of: ViewOf) -> LayerView:
    view = view_of(module)
    assert isinstance(view, LayerView)
    return view


def _from_channels(view: LayerView, tensor: Tensor) -> Tensor:
    return view.from_matrix(tensor.reshape(view.groups, view.outputs, view.fan))
