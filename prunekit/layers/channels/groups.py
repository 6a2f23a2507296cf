"""Channel groups: choose which channels of a network to keep, each with its units in all layers.

A residual network adds the outputs of several layers, so removing a unit of one of them frees nothing. Channels are
therefore ranked by the summed scores of all their units, and a dropped channel also loses its entries in biases and in
the scale and shift of normalisations. This module knows unit numbers and scores; it must not know how channels are
traced.
"""

from collections.abc import Mapping
from fractions import Fraction

import attrs
import torch
from torch import Tensor

from prunekit.errors import ConfigError, MaskError
from prunekit.layers.lookup import parameter_name
from prunekit.layers.view import LayerView
from prunekit.masks.patterns import kept_count
from prunekit.masks.selection import among
from prunekit.masks.top_k import mark_best


@attrs.frozen(eq=False)
class ChannelGroup:
    """Channels that the same layers compute and that therefore compete with each other.

    Attributes:
        units: layer -> numbers of the units that compute each channel, ``[channels, units of a channel]``; int64.
    """

    units: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.units.values())))

    def kept(self, density: float) -> int:
        """Return the number of channels that a density keeps, at least one."""
        return max(1, kept_count(density, len(self)))


@attrs.frozen(eq=False)
class ChannelGroups:
    """All channels of a network that can be removed.

    Attributes:
        groups: the groups; channels are numbered from 0, group after group.
        layers: traced layer -> number of its units, including those that must be kept, which are in no group.
        kept_whole: layer of which no unit can be removed -> reason.
        parameters: other parameter with entries for channels (biases, scale and shift of normalisations) -> number of
            the channel of each entry, -1 if the entry must be kept; int64 of the parameter's shape.
    """

    groups: tuple[ChannelGroup, ...]
    layers: Mapping[str, int]
    kept_whole: Mapping[str, str]
    parameters: Mapping[str, Tensor]

    @property
    def prunable(self) -> frozenset[str]:
        """The layers that have units that can be removed."""
        return frozenset(name for group in self.groups for name in group.units)

    def check(self, targets: Mapping[str, float]) -> None:
        """Raise an error for densities that whole channels cannot have.

        Args:
            targets: layer -> density, in (0, 1].

        Raises:
            ConfigError: a layer was not traced or has no unit that can be removed; layers that share channels have
                different densities, or only some of them have one.
        """
        for name in [name for name, density in targets.items() if density < 1 and name not in self.prunable]:
            raise ConfigError(f"no channel of layer {name!r} can be removed ({self.reason_kept(name)}); exclude it")
        for group in self.groups:
            requested = {name: targets.get(name, 1.0) for name in group.units}
            if len(set(requested.values())) > 1:
                *others, last = requested
                densities = " ".join(f"{name}={density:g}" for name, density in requested.items())
                raise ConfigError(
                    f"layers {', '.join(others)} and {last} share channels and need the same density, but got "
                    f"{densities}; use one density or exclude them all"
                )

    def reason_kept(self, name: str) -> str:
        """Return the reason why no unit of a layer can be removed."""
        return self.kept_whole.get(name, "the network does not call it, or its type cannot be traced")

    def kept_shares(self, targets: Mapping[str, float]) -> dict[str, Fraction]:
        """Return the exact share of its units that each layer keeps.

        Args:
            targets: layer -> density, in (0, 1]; see ``check``.
        """
        dropped = dict.fromkeys(targets, 0)
        for group, density in self._requested(targets):
            count = len(group) - group.kept(density)
            for name, units in group.units.items():
                dropped[name] += count * units.shape[1]
        return {name: 1 - Fraction(count, self.layers.get(name, 1)) for name, count in dropped.items()}

    def choose(
        self,
        targets: Mapping[str, float],
        layers: Mapping[str, LayerView],
        scores: Mapping[str, Tensor],
        before: Mapping[str, Tensor | None],
    ) -> dict[str, Tensor]:
        """Keep the best channels of each group: those with the highest sums of scores, the first among equals.

        A group keeps ``round(density * channels)`` channels, at least one. Units in no group keep their connections.

        Args:
            targets: layer -> density; see ``check``.
            layers: the views of these layers.
            scores: layer -> ``[G, out, fan]``, without NaN.
            before: layer -> mask before the update, bool ``[G, out, fan]``; ``None``: dense. A channel that has lost
                connections cannot be kept.

        Returns:
            Layer -> mask, bool ``[G, out, fan]``.

        Raises:
            MaskError: a density needs more channels than still have all their connections.
        """
        sums = {name: _by_unit(layers[name], scores[name].sum(-1, dtype=torch.float64)) for name in targets}
        whole = {name: _whole_units(layers[name], mask) for name, mask in before.items() if mask is not None}
        kept = {name: torch.ones_like(total, dtype=torch.bool) for name, total in sums.items()}
        for group, density in self._requested(targets):
            units_of = {name: units.to(sums[name].device) for name, units in group.units.items()}
            total = torch.stack([sums[name][units].sum(1) for name, units in units_of.items()]).sum(0)
            complete = torch.ones_like(total, dtype=torch.bool)
            for name in units_of.keys() & whole.keys():
                complete &= whole[name][units_of[name]].all(1)
            (best,) = mark_best([among(total, complete)], group.kept(density))
            if bool((best & ~complete).any()):
                raise MaskError(
                    f"density {density:g} keeps {group.kept(density)} channels of {', '.join(group.units)}, but only "
                    f"{int(complete.sum())} still have all their connections; use a lower density"
                )
            for name, units in units_of.items():
                kept[name][units[~best].flatten()] = False
        masks = {}
        for name, units in kept.items():
            mask, old = unit_mask(layers[name], units), before[name]
            masks[name] = mask if old is None else mask & old
        return masks

    def parameter_masks(self, layers: Mapping[str, LayerView], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of other parameters, which drop the entries of channels that have no connection left.

        Args:
            layers: the views of the network's layers.
            masks: layer -> bool of the weight's shape; layers without a mask are dense.

        Returns:
            Parameter name -> bool of its shape, only for parameters that lose an entry.
        """
        if not self.groups or not masks:
            return {}
        connected = torch.cat([self._connected(group, layers, masks) for group in self.groups])
        device = next(iter(masks.values())).device
        kept = {name: (numbers < 0) | connected[numbers.clamp(min=0)] for name, numbers in self.parameters.items()}
        return {name: mask.to(device) for name, mask in kept.items() if not bool(mask.all())}

    def _requested(self, targets: Mapping[str, float]) -> list[tuple[ChannelGroup, float]]:
        """Return the groups that have a density, with it."""
        first_layers = ((group, next(iter(group.units))) for group in self.groups)
        return [(group, targets[name]) for group, name in first_layers if name in targets]

    def _connected(self, group: ChannelGroup, layers: Mapping[str, LayerView], masks: Mapping[str, Tensor]) -> Tensor:
        """Return which channels of a group keep any connection: bool ``[channels]`` on the CPU."""
        connected = torch.zeros(len(group), dtype=torch.bool)
        for name, units in group.units.items():
            if name not in masks:
                return torch.ones_like(connected)
            rows = _by_unit(layers[name], layers[name].to_matrix(masks[name]).any(-1)).cpu()
            connected |= rows[units].any(1)
        return connected


def by_parameter(
    layers: Mapping[str, LayerView], masks: Mapping[str, Tensor], channel_groups: ChannelGroups | None
) -> dict[str, Tensor]:
    """Return the masks of layers by parameter name, and those of the other parameters of channels.

    Args:
        layers: the views of the network's layers.
        masks: layer -> bool of the weight's shape.
        channel_groups: the channels of the network; ``None``: only the masks of layers are returned.
    """
    named = {parameter_name(name, layers[name]): mask for name, mask in masks.items()}
    return named if channel_groups is None else named | channel_groups.parameter_masks(layers, masks)


def unit_mask(view: LayerView, units: Tensor) -> Tensor:
    """Return the mask that keeps some units of a layer whole: bool ``[units]`` -> bool ``[G, out, fan]``."""
    rows = units.expand(view.groups, -1) if view.groups_are_positions else units.reshape(view.groups, -1)
    return rows.unsqueeze(-1).expand(-1, -1, view.fan)


def _by_unit(view: LayerView, values: Tensor) -> Tensor:
    """Sum numbers, or combine booleans by "or", over the positions of each unit: ``[G, out]`` -> ``[units]``."""
    if not view.groups_are_positions:
        return values.flatten()
    return values.any(0) if values.dtype == torch.bool else values.sum(0)


def _whole_units(view: LayerView, mask: Tensor) -> Tensor:
    """Return which units a mask keeps whole: bool ``[G, out, fan]`` -> bool ``[units]``."""
    return ~_by_unit(view, ~mask.all(-1))
