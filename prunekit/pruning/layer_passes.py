"""The passes of a mask update over a single layer: score, select, repair, grow.

Tensors are matrices ``[G, out, fan]``, see ``prunekit.layers.view``. This module must not know other layers.
"""

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.schedule import MaskUpdate
from prunekit.distributed.dtensor import full_tensor
from prunekit.errors import PluginError
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Quota, keep_best, kept_count, requested_count


@attrs.frozen
class UpdatedLayer:
    """One layer during a mask update.

    Attributes:
        name: its name in the network.
        view: its view.
        criterion: ranks its connections, and no others.
        mask: its current mask, bool ``[G, out, fan]``; ``None``: dense.
        generator: draws its random numbers; scoring, selection and growth use it one after another.
    """

    name: str
    view: LayerView
    criterion: Criterion
    mask: Tensor | None
    generator: torch.Generator

    @property
    def connections(self) -> int:
        """The number of connections that the current mask keeps."""
        return self.view.shape(self.name).weights if self.mask is None else int(self.mask.sum())

    def weight(self) -> Tensor:
        """Return the whole weight, gathered if it is sharded."""
        return self.view.to_matrix(full_tensor(self.view.weight))


@attrs.frozen
class Selection:
    """The connections that an update selects in one layer, before growth.

    Attributes:
        scores: float.
        kept: bool, True = keep.
    """

    scores: Tensor
    kept: Tensor


def score(layer: UpdatedLayer) -> Tensor:
    """Return the scores of a layer's connections, higher = keep.

    Raises:
        PluginError: the criterion returns NaN, or anything but floats of the weight's shape.
    """
    weight, criterion = layer.weight(), layer.criterion
    with torch.no_grad():
        scores = criterion.score(weight, layer.generator)
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise PluginError(
            f"criterion {criterion.name!r} scored layer {layer.name!r} with {scores.dtype} {tuple(scores.shape)}, "
            f"expected floats {tuple(weight.shape)}"
        )
    if bool(scores.isnan().any()):
        raise PluginError(
            f"criterion {criterion.name!r} gave NaN scores for layer {layer.name!r}; are its weights finite?"
        )
    return scores


def selection_count(update: MaskUpdate, layer: UpdatedLayer) -> int:
    """Return how many connections of a layer selection keeps; growth then adds connections up to the density."""
    exchanged = update.grow.fraction if update.grow is not None else 0.0
    density = update.targets[layer.name] * (1 - exchanged)
    return requested_count(density, layer.view.shape(layer.name).weights, update.pattern, layer.view.fan)


def score_and_select(update: MaskUpdate, layer: UpdatedLayer) -> Selection:
    """Score a layer, and let its criterion select from these scores.

    Raises:
        MaskError: the pattern cannot keep that many connections.
        PluginError: the criterion returns unusable scores, or a mask with another number of connections.
    """
    scores = score(layer)
    # A layer that is to grow keeps its connections.
    count = min(selection_count(update, layer), layer.connections)
    scope = update.competition(layer.criterion.scope)
    assert scope != "global", "layers that compete with each other are selected jointly"
    quota = Quota(count / scores.numel(), layer.view.fan_shape, scope, update.pattern, layer.mask)
    with torch.no_grad():
        kept = layer.criterion.select(scores, quota, layer.generator)
    _check_kept(layer, kept, count, scores)
    return Selection(scores, kept)


def _check_kept(layer: UpdatedLayer, kept: Tensor, count: int, scores: Tensor) -> None:
    found = int(kept.sum()) if kept.dtype == torch.bool else -1
    if kept.shape != scores.shape or found != count:
        described = f"{found} of {kept.numel()}" if found >= 0 else f"a {kept.dtype} tensor"
        raise PluginError(
            f"criterion {layer.criterion.name!r} kept {described} connections of layer {layer.name!r}, "
            f"expected exactly {count} as bool {tuple(scores.shape)}"
        )


def repair(layer: UpdatedLayer, kept: Tensor) -> Tensor | None:
    """Return the weight that the criterion reconstructs for the kept connections; ``None`` if it changes nothing."""
    with torch.no_grad():
        weight = layer.weight()
        repaired = layer.criterion.reconstruct(weight, kept)
    return None if repaired is weight else repaired


def grow(update: MaskUpdate, layer: UpdatedLayer, kept: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the mask with dropped connections added up to the density, those dropped in this update too (as in RigL).

    Args:
        update: growth does nothing if it does not request any.
        layer: the layer.
        kept: the selected connections, bool.
        gradient: loss gradient of the weight, in its shape; ``None``: no gradient reaches the layer.
    """
    if update.grow is None:
        return kept
    if update.grow.by == "random":
        preference = torch.rand(kept.shape, generator=layer.generator)
    elif gradient is None:
        preference = torch.zeros(kept.shape)
    else:
        preference = layer.view.to_matrix(full_tensor(gradient)).abs()
    missing = kept_count(update.targets[layer.name], kept.numel()) - int(kept.sum())
    if missing <= 0:
        return kept
    quota = Quota(missing / kept.numel(), layer.view.fan_shape, candidates=~kept)
    return kept | keep_best(preference.to(kept.device).float(), quota)
