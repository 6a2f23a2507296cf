"""Streams: the channels of a network, each of which stays or goes whole, through all layers that make it.

In a residual network what layers put out is added up: a unit of one of them alone frees nothing. So channels are
ranked by the scores of all units that make them, and what else makes them (biases, the scale and shift of batch
normalisation) goes with them. This module knows numbers of units and scores; it must not know how one sees where
channels flow.
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
    """Channels that the same layers make, which compete with each other.

    Attributes:
        units: layer -> the numbers of its units that make each channel, ``[channels, units of a channel]``; int64.
    """

    units: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.units.values())))

    def kept(self, density: float) -> int:
        """Return how many channels a density keeps: at least one."""
        return max(1, kept_count(density, len(self)))


@attrs.frozen(eq=False)
class ChannelGroups:
    """All channels of a network that can go.

    Attributes:
        groups: a channel is in one of them; they are counted through, one group after the other.
        layers: layer that was followed -> how many units it has; in no group are those that have to stay.
        staying: layer of which no unit can go -> why.
        followers: parameter that goes with channels -> the number of the channel of each entry, -1 where that stays;
            int64 of its shape.
    """

    groups: tuple[ChannelGroup, ...]
    layers: Mapping[str, int]
    staying: Mapping[str, str]
    followers: Mapping[str, Tensor]

    @property
    def free(self) -> frozenset[str]:
        """The layers of which units can go."""
        return frozenset(name for group in self.groups for name in group.units)

    def check(self, targets: Mapping[str, float]) -> None:
        """Refuse densities that whole channels cannot have.

        Raises:
            ConfigError: a layer of which no unit can go, or was not followed; layers that make the same channels, not
                all of them named or with several densities.
        """
        for name in [name for name, density in targets.items() if density < 1 and name not in self.free]:
            raise ConfigError(f"layer {name!r} keeps all its channels: {self.why(name)}; leave it out")
        for group in self.groups:
            asked = {name: targets.get(name, 1.0) for name in group.units}
            if len(set(asked.values())) > 1:
                told = " ".join(f"{name}={density:g}" for name, density in asked.items())
                raise ConfigError(
                    f"channels of these layers are the same ones, but asked is {told}; give them one density, "
                    "or leave all of them out"
                )

    def why(self, name: str) -> str:
        """Say why no unit of a layer can go."""
        return self.staying.get(name, "the network does not call it, or it is of a type that is not followed")

    def left(self, targets: Mapping[str, float]) -> dict[str, Fraction]:
        """Return the share of its units that each layer keeps of whole channels, exactly.

        Args:
            targets: layer -> density, in (0, 1]; see ``check``.
        """
        dropped = dict.fromkeys(targets, 0)
        for group, density in self._asked(targets):
            gone = len(group) - group.kept(density)
            for name, units in group.units.items():
                dropped[name] += gone * units.shape[1]
        return {name: 1 - Fraction(count, self.layers.get(name, 1)) for name, count in dropped.items()}

    def choose(
        self,
        targets: Mapping[str, float],
        layers: Mapping[str, LayerView],
        scores: Mapping[str, Tensor],
        before: Mapping[str, Tensor | None],
    ) -> dict[str, Tensor]:
        """Keep the best channels of each group: those with the highest sums of scores, the first of equal ones.

        Of a group ``round(density * channels)`` stay, at least one. Units in no group stay as they are.

        Args:
            targets: layer -> density; see ``check``.
            layers: the views of these layers.
            scores: ``[G, out, fan]`` of each, no NaN.
            before: what there is of each, bool ``[G, out, fan]``; ``None``: all. Only whole channels can be kept.

        Returns:
            The mask of each, bool ``[G, out, fan]``.

        Raises:
            MaskError: fewer whole channels are left than are asked for.
        """
        sums = {name: _by_unit(layers[name], scores[name].sum(-1, dtype=torch.float64)) for name in targets}
        whole = {name: _whole_units(layers[name], mask) for name, mask in before.items() if mask is not None}
        kept = {name: torch.ones_like(total, dtype=torch.bool) for name, total in sums.items()}
        for group, density in self._asked(targets):
            places = {name: units.to(sums[name].device) for name, units in group.units.items()}
            total = torch.stack([sums[name][units].sum(1) for name, units in places.items()]).sum(0)
            there = torch.ones_like(total, dtype=torch.bool)
            for name in places.keys() & whole.keys():
                there &= whole[name][places[name]].all(1)
            (best,) = mark_best([among(total, there)], group.kept(density))
            if bool((best & ~there).any()):
                raise MaskError(
                    f"density {density:g} asks for {group.kept(density)} channels of {', '.join(group.units)}, "
                    f"but only {int(there.sum())} are whole"
                )
            for name, units in places.items():
                kept[name][units[~best].flatten()] = False
        masks = {}
        for name, units in kept.items():
            mask, old = unit_mask(layers[name], units), before[name]
            masks[name] = mask if old is None else mask & old
        return masks

    def follow(self, layers: Mapping[str, LayerView], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of what goes with channels of which no connection is kept, by parameter name.

        Args:
            layers: the views of the network's layers.
            masks: layer -> bool of the weight's shape; layers without one are dense.
        """
        if not self.groups or not masks:
            return {}
        alive = torch.cat([self._alive(group, layers, masks) for group in self.groups])
        device = next(iter(masks.values())).device
        kept = {name: (numbers < 0) | alive[numbers.clamp(min=0)] for name, numbers in self.followers.items()}
        return {name: mask.to(device) for name, mask in kept.items() if not bool(mask.all())}

    def _asked(self, targets: Mapping[str, float]) -> list[tuple[ChannelGroup, float]]:
        asked = ((group, next(iter(group.units))) for group in self.groups)
        return [(group, targets[name]) for group, name in asked if name in targets]

    def _alive(self, group: ChannelGroup, layers: Mapping[str, LayerView], masks: Mapping[str, Tensor]) -> Tensor:
        """Say of each channel of a group whether any of its connections is kept: bool, on the CPU."""
        alive = torch.zeros(len(group), dtype=torch.bool)
        for name, units in group.units.items():
            if name not in masks:
                return torch.ones_like(alive)
            rows = _by_unit(layers[name], layers[name].to_matrix(masks[name]).any(-1)).cpu()
            alive |= rows[units].any(1)
        return alive


def by_parameter(
    layers: Mapping[str, LayerView], masks: Mapping[str, Tensor], channel_groups: ChannelGroups | None
) -> dict[str, Tensor]:
    """Return the masks of layers by parameter name, and those of what goes with channels, where streams are known.

    Args:
        layers: the views of the network's layers.
        masks: layer -> bool of the weight's shape.
        channel_groups: of the network.
    """
    named = {parameter_name(name, layers[name]): mask for name, mask in masks.items()}
    return named if channel_groups is None else named | channel_groups.follow(layers, masks)


def unit_mask(view: LayerView, units: Tensor) -> Tensor:
    """Return the mask ``[G, out, fan]`` that keeps some units of a layer whole: bool ``[units]``."""
    rows = units.expand(view.groups, -1) if view.groups_are_positions else units.reshape(view.groups, -1)
    return rows.unsqueeze(-1).expand(-1, -1, view.fan)


def _by_unit(view: LayerView, values: Tensor) -> Tensor:
    """Add up what is ``[G, out]`` over the positions of each unit: ``[units]``; of truths, whether any holds."""
    if not view.groups_are_positions:
        return values.flatten()
    return values.any(0) if values.dtype == torch.bool else values.sum(0)


def _whole_units(view: LayerView, mask: Tensor) -> Tensor:
    """Say which units a mask ``[G, out, fan]`` keeps whole: bool ``[units]``."""
    return ~_by_unit(view, ~mask.all(-1))
