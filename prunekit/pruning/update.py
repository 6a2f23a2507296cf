"""One mask update: observe, score, select, repair, grow.

``prunekit.select`` and runs both call ``choose_masks``. It decides which connections to keep; ``masks`` holds the
others at zero, and the schedule decides when to update. This module must not know stages or training.
"""

from collections.abc import Callable, Mapping
from math import nan

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.events import LayerUpdate
from prunekit.contracts.schedule import MaskUpdate, check_target
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import reshard, shard_like
from prunekit.errors import ConfigError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Channels
from prunekit.pruning.evidence import Evidence
from prunekit.pruning.joint_selection import score_and_select_jointly
from prunekit.pruning.layer_passes import Selection, UpdatedLayer, grow, repair, score_and_select
from prunekit.pruning.observing import observe, summed_gradients


@attrs.frozen
class PrunableNetwork:
    """A network as a mask update sees it.

    Attributes:
        module: the network.
        layers: all its prunable layers, name -> view.
        channel_groups: its channels; ``None``: not traced, so that whole channels cannot be pruned.
    """

    module: nn.Module
    layers: Mapping[str, LayerView]
    channel_groups: ChannelGroups | None = None


@attrs.frozen
class ChosenMasks:
    """The outcome of a mask update.

    Attributes:
        masks: layer -> mask after the update, bool of the weight's shape.
        pruned: layer -> mask before growth; a connection in ``masks`` but not here starts from zero.
        repaired: layer -> reconstructed weight, for layers whose kept weights the criterion changed; sharded like the
            parameter.
        layers: layer -> result of the update in numbers.
    """

    masks: dict[str, Tensor]
    pruned: dict[str, Tensor]
    repaired: dict[str, Tensor]
    layers: dict[str, LayerUpdate]


def choose_masks(
    prunable: PrunableNetwork,
    update: MaskUpdate,
    current: Mapping[str, Tensor],
    make_criterion: Callable[[], Criterion],
    evidence: Evidence,
    seeds: Seeds,
) -> ChosenMasks:
    """Choose the masks of one update for the weights as they are; nothing is changed.

        network = PrunableNetwork(model, find_layers(model))
        chosen = choose_masks(network, MaskUpdate(0.0, {"fc": 0.1}), {}, Magnitude, Evidence(None), Seeds(0))
        chosen.masks["fc"]

    Layers are scored one after another, so that only one layer's scores, and only one gathered weight of a sharded
    network, exist at a time. Joint selection (scope "global", pattern "channels") keeps the scores of all its layers.

    Args:
        prunable: the network.
        update: the layers to update, with their densities.
        current: layer -> current mask, bool of the weight's shape; a layer without an entry is dense.
        make_criterion: returns a fresh criterion.
        evidence: where criteria get activations and gradients.
        seeds: the seeds of this update; every layer draws from its own generator.

    Raises:
        ConfigError: evidence that the criterion needs is missing; densities that whole channels cannot have.
        MaskError: the pattern cannot keep the requested number of connections.
        PluginError: a criterion returns unusable scores or masks.
    """
    if update.reopens:
        return _reopen_all(prunable, update, current)
    layers = _layers_to_update(prunable, update, current, make_criterion, seeds)
    _observe(prunable, layers, evidence)
    gradients = _gradients_for_growth(update, layers, evidence)
    reshard(prunable.module)  # observing has gathered some parameters
    joint = _select_jointly(prunable, update, layers)
    outcomes = {
        # Popped, so that a layer's statistics and scores are freed before the next layer is scored.
        name: _update_layer(update, layers.pop(name), joint.pop(name, None), gradients.get(name))
        for name in update.targets
    }
    return _collect(outcomes)


def _layers_to_update(
    prunable: PrunableNetwork,
    update: MaskUpdate,
    current: Mapping[str, Tensor],
    make_criterion: Callable[[], Criterion],
    seeds: Seeds,
) -> dict[str, UpdatedLayer]:
    """Check that an update fits its layers, and return them with a criterion each."""
    views = {name: prunable.layers[name] for name in update.targets}
    for name, view in views.items():
        check_target(update, view.shape(name))
    if isinstance(update.pattern, Channels):
        if prunable.channel_groups is None:
            raise ConfigError("pattern 'channels' needs the channels of the network; run it on samples first")
        prunable.channel_groups.check(update.targets)
    layers = {}
    for name, view in views.items():
        criterion = _RandomRanking() if update.by == "random" else make_criterion()
        criterion.check(update.competition(criterion.scope), update.pattern)
        mask = current.get(name)
        matrix = None if mask is None or bool(mask.all()) else view.to_matrix(mask)
        layers[name] = UpdatedLayer(name, view, criterion, matrix, seeds.generator("selection", name))
    return layers


@attrs.frozen
class _RandomRanking(Criterion):
    """Ranks at random, in place of the criterion, for an update that requests it."""

    name = "random draw"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(weight.shape, generator=generator).to(weight.device)


def _observe(prunable: PrunableNetwork, layers: Mapping[str, UpdatedLayer], evidence: Evidence) -> None:
    views = {name: layer.view for name, layer in layers.items()}
    criteria = {name: layer.criterion for name, layer in layers.items()}
    masks = {name: layer.mask for name, layer in layers.items() if layer.mask is not None}
    observe(prunable.module, views, criteria, masks, evidence)


def _gradients_for_growth(
    update: MaskUpdate, layers: Mapping[str, UpdatedLayer], evidence: Evidence
) -> dict[str, Tensor]:
    """Return layer -> gradient of the weight's shape; empty unless the update grows by gradient."""
    if update.grow is None or update.grow.by != "gradient":
        return {}
    if evidence.gradients is None:
        raise ConfigError("growth by gradient needs gradients: give a loss and training batches")
    return summed_gradients({name: layer.view for name, layer in layers.items()}, evidence.gradients)


def _select_jointly(
    prunable: PrunableNetwork, update: MaskUpdate, layers: Mapping[str, UpdatedLayer]
) -> dict[str, Selection]:
    """Return the selection of each layer if layers are selected together; empty if each is selected on its own."""
    channel_groups = prunable.channel_groups if isinstance(update.pattern, Channels) else None
    scope = update.competition(next(iter(layers.values())).criterion.scope)
    if channel_groups is None and scope != "global":
        return {}
    return score_and_select_jointly(update, layers, channel_groups)


@attrs.frozen
class _LayerOutcome:
    """The outcome of an update in one layer; see ``ChosenMasks``."""

    mask: Tensor
    pruned: Tensor
    repaired: Tensor | None
    report: LayerUpdate


def _update_layer(
    update: MaskUpdate, layer: UpdatedLayer, joint: Selection | None, gradient: Tensor | None
) -> _LayerOutcome:
    """Score and select, unless layers were selected jointly; then repair and grow."""
    selection = score_and_select(update, layer) if joint is None else joint
    repaired = repair(layer, selection.kept)
    if repaired is not None:
        repaired = shard_like(layer.view.from_matrix(repaired), layer.view.weight)
    mask = grow(update, layer, selection.kept, gradient)
    report = _report(update.targets[layer.name], mask, selection.scores)
    return _LayerOutcome(layer.view.from_matrix(mask), layer.view.from_matrix(selection.kept), repaired, report)


def _report(requested: float, mask: Tensor, scores: Tensor) -> LayerUpdate:
    finite = scores.isfinite()
    # Other scores count as zero in the sums: indexing the finite ones would take many times as long.
    known = torch.where(finite, scores, 0.0).double()
    return LayerUpdate(
        requested=requested,
        kept=int(mask.count_nonzero()),
        weights=mask.numel(),
        mean_kept_score=float((known * mask).sum()) / max(1, int((finite & mask).count_nonzero())),
        mean_score=float(known.sum()) / max(1, int(finite.count_nonzero())),
    )


def _reopen_all(prunable: PrunableNetwork, update: MaskUpdate, current: Mapping[str, Tensor]) -> ChosenMasks:
    """Let all connections back; there is nothing to score."""
    outcomes = {}
    for name in update.targets:
        weight = prunable.layers[name].weight
        mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        report = LayerUpdate(1.0, mask.numel(), mask.numel(), nan, nan)
        outcomes[name] = _LayerOutcome(mask, current.get(name, mask), None, report)
    return _collect(outcomes)


def _collect(outcomes: Mapping[str, _LayerOutcome]) -> ChosenMasks:
    return ChosenMasks(
        masks={name: outcome.mask for name, outcome in outcomes.items()},
        pruned={name: outcome.pruned for name, outcome in outcomes.items()},
        repaired={name: outcome.repaired for name, outcome in outcomes.items() if outcome.repaired is not None},
        layers={name: outcome.report for name, outcome in outcomes.items()},
    )
