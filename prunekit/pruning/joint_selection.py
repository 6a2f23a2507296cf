"""Selection from several layers at once: all their connections compete, or channels run through them.

This module must not know criteria; ``pruning`` gives it their scores.
"""

from collections.abc import Mapping

from torch import Tensor

from prunekit.contracts.schedule import MaskUpdate
from prunekit.errors import MaskError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Blocks, among, keep_best_global, requested_count


def count_left(update: MaskUpdate, name: str, view: LayerView) -> int:
    """Return how many connections of a layer selection is to keep, before growth fills it up."""
    exchanged = update.grow.fraction if update.grow is not None else 0.0
    return requested_count(update.targets[name] * (1 - exchanged), view.shape(name).weights, update.pattern, view.fan)


def select_together(
    update: MaskUpdate,
    layers: Mapping[str, LayerView],
    scores: Mapping[str, Tensor],
    before: Mapping[str, Tensor | None],
    channel_groups: ChannelGroups | None,
) -> dict[str, Tensor]:
    """Return the mask of each layer of an update, bool ``[G, out, fan]``.

    Args:
        update: what is asked.
        layers: its targets.
        scores: ``[G, out, fan]`` of each.
        before: the masks so far; ``None``: dense.
        channel_groups: where the pattern is channels, those of the network.

    Raises:
        MaskError: fewer whole blocks or channels are left than are asked for.
    """
    if channel_groups is not None:
        return channel_groups.choose(update.targets, layers, scores, before)
    ranked = {name: among(score, before[name]) for name, score in scores.items()}
    count = sum(count_left(update, name, view) for name, view in layers.items())
    if not isinstance(update.pattern, Blocks):  # no other pattern competes over layers, see ``check_target``
        there = sum(scores[name].numel() if mask is None else int(mask.sum()) for name, mask in before.items())
        return keep_best_global(ranked, min(count, there))
    masks = keep_best_global(ranked, count, update.pattern)
    for name, mask in before.items():
        if mask is not None and bool((masks[name] & ~mask).any()):
            raise MaskError(
                f"{count} connections are asked for, but fewer are left in whole blocks of {update.pattern}"
            )
    return masks
