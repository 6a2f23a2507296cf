"""Selection from several layers at once, because their connections compete or because they share channels.

It keeps the scores of all these layers at the same time. It must not know how layers are scored.
"""

from collections.abc import Mapping

from torch import Tensor

from prunekit.contracts.schedule import MaskUpdate
from prunekit.errors import MaskError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.masks.selection import Blocks, among, keep_best_global
from prunekit.pruning.layer_passes import Selection, UpdatedLayer, score, selection_count


def score_and_select_jointly(
    update: MaskUpdate, layers: Mapping[str, UpdatedLayer], channel_groups: ChannelGroups | None
) -> dict[str, Selection]:
    """Score all layers of an update, and select from all these scores.

    Args:
        update: the densities, and the pattern of the masks.
        layers: layer name -> layer, for all targets of the update.
        channel_groups: the channels of the network if whole channels are selected; ``None``: connections compete.

    Returns:
        Layer name -> selection.

    Raises:
        MaskError: fewer whole blocks or channels are left than requested.
        PluginError: a criterion returns unusable scores.
    """
    scores = {name: score(layer) for name, layer in layers.items()}
    if channel_groups is None:
        kept = _select_connections(update, layers, scores)
    else:
        views = {name: layer.view for name, layer in layers.items()}
        masks = {name: layer.mask for name, layer in layers.items()}
        kept = channel_groups.choose(update.targets, views, scores, masks)
    return {name: Selection(scores[name], kept[name]) for name in layers}


def _select_connections(
    update: MaskUpdate, layers: Mapping[str, UpdatedLayer], scores: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the masks that keep the best connections or blocks of all layers; the total is exact."""
    candidates = {name: among(score, layers[name].mask) for name, score in scores.items()}
    count = sum(selection_count(update, layer) for layer in layers.values())
    if not isinstance(update.pattern, Blocks):  # ``check_target`` refuses other patterns with scope "global"
        return keep_best_global(candidates, min(count, sum(layer.connections for layer in layers.values())))
    kept = keep_best_global(candidates, count, update.pattern)
    for name, layer in layers.items():
        if layer.mask is not None and bool((kept[name] & ~layer.mask).any()):
            raise MaskError(
                f"{count} connections are requested, but fewer are left in whole blocks of {update.pattern}; "
                "use a lower density"
            )
    return kept
