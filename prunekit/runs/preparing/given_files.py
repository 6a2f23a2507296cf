"""Step 3 of a preparation, read: the masks and weights that the user gives to start from.

This module must not know plans or training.
"""

from collections.abc import Mapping

import attrs
from torch import Tensor, nn

from prunekit.errors import MaskError
from prunekit.files.safetensors_files import some
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.view import LayerView
from prunekit.masks.masks import load_masks
from prunekit.masks.matching import match, same_mask
from prunekit.masks.weight_files import check_weights, load_weights
from prunekit.runs.config import RunConfig


@attrs.frozen
class StartingPoint:
    """Masks and weights to start from.

    Attributes:
        masks: layer -> bool of the weight's shape, for the layers that have one.
        weights: a state dict of the deployed network; ``None``: the task's initial weights.
    """

    masks: Mapping[str, Tensor] = attrs.field(factory=dict)
    weights: Mapping[str, Tensor] | None = None

    def __bool__(self) -> bool:
        return bool(self.masks) or self.weights is not None

    def densities(self) -> dict[str, float]:
        """Return layer -> kept / total, for the layers that have a mask."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self.masks.items()}


def read_given(
    config: RunConfig, network: nn.Module, views: Mapping[str, LayerView], channel_groups: ChannelGroups | None = None
) -> StartingPoint:
    """Read and check the files that a run starts from.

    Args:
        config: names the files, if there are any.
        network: the deployed network; it may be on the device "meta".
        views: its prunable layers.
        channel_groups: the channels of the network, if they are pruned; masks of parameters that follow the channels
            are then accepted, too.

    Raises:
        CheckpointError: weights that cannot be read or do not belong to the network; names all differences.
        MaskError: masks that cannot be read or do not belong to prunable layers; names all of them.
    """
    masks = {} if config.masks is None else _masks(config.masks, network, views, channel_groups)
    weights = None if config.weights is None else load_weights(config.weights)
    if weights is not None:
        check_weights(weights, network, config.weights, "give the model.safetensors of a run of this task")
    return StartingPoint(masks, weights)


def _masks(
    path: str, network: nn.Module, views: Mapping[str, LayerView], channel_groups: ChannelGroups | None
) -> dict[str, Tensor]:
    masks = load_masks(path).tensors
    try:
        matched = match(masks, network)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error
    layers = {id(view.weight): name for name, view in views.items()}
    others = {name: mask for name, (parameter, mask) in matched.items() if id(parameter) not in layers}
    known = {} if channel_groups is None else dict.fromkeys(channel_groups.parameters)
    if strange := [name for name in others if name not in known]:
        hint = "" if known else ", or use --pattern channels if they follow channels that were removed"
        raise MaskError(f"{path}: {some(strange)} do not belong to prunable layers; remove their masks{hint}")
    found = {layers[id(parameter)]: mask for parameter, mask in matched.values() if id(parameter) in layers}
    follow = {} if channel_groups is None else channel_groups.parameter_masks(views, found)
    if wrong := [name for name, mask in others.items() if not bool(mask.all()) and not _same(mask, follow.get(name))]:
        raise MaskError(f"{path}: the masks of {some(wrong)} do not match the removed channels; remove those masks")
    return found


def _same(mask: Tensor, other: Tensor | None) -> bool:
    return other is not None and same_mask(mask, other)
