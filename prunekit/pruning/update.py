"""One mask update: observe, score, select, repair, grow.

Both the engine and ``prunekit.select`` come here. This module decides which connections stay; holding
them at zero is the business of ``masks``, and when to update is that of the schedule.
"""

from collections.abc import Callable, Mapping
from math import nan

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion, NetworkCriterion, observes
from prunekit.contracts.events import LayerUpdate
from prunekit.contracts.schedule import MaskUpdate, check_target
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import full_tensor, reshard, shard_like
from prunekit.errors import ConfigError, PluginError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Channels, Quota, keep_best, kept_count
from prunekit.pruning.joint_selection import count_left, select_together
from prunekit.pruning.observing import Evidence, observe, summed_gradients, survey


@attrs.frozen
class Chosen:
    """The outcome of an update.

    Attributes:
        masks: layer -> mask of the weight's shape.
        pruned: the same before growth: what is in ``masks`` but not here starts from zero.
        repaired: layer -> weight to go on with, for layers whose kept weights the criterion changed; where parameters
            are spread over processes, spread as they are.
        layers: layer -> what became of it.
    """

    masks: dict[str, Tensor]
    pruned: dict[str, Tensor]
    repaired: dict[str, Tensor]
    layers: dict[str, LayerUpdate]


def choose_masks(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    update: MaskUpdate,
    current: Mapping[str, Tensor],
    make_criterion: Callable[[], Criterion],
    evidence: Evidence,
    seeds: Seeds,
    channel_groups: ChannelGroups | None = None,
) -> Chosen:
    """Work out one mask update for the weights as they are. Changes nothing.

    Layers are scored one after another, so that of weights that are spread over processes one whole layer is there
    at a time, and the scores of one; only where layers are selected together, the scores of all are kept.

    Args:
        network: the network that the layers are in.
        layers: all prunable layers by name.
        update: what is asked.
        current: layer -> mask so far (bool, the weight's shape); a layer not named is dense.
        make_criterion: returns a fresh criterion.
        evidence: where criteria get activations and gradients.
        seeds: the seeds of this update; every layer draws from a generator of its own.
        channel_groups: the channels of the network, for an update with the pattern "channels".

    Raises:
        ConfigError: when a criterion needs data that ``evidence`` does not have; densities that whole channels cannot
            have.
        MaskError: when the count cannot be met.
        PluginError: when a criterion returns scores or masks that are none.
    """
    targets = {name: layers[name] for name in update.targets}
    if update.reopens:
        return _reopen(targets, current)
    for name, view in targets.items():
        check_target(update, view.shape(name))
    channel_groups = _channel_groups(update, channel_groups)
    criteria = {name: _Draw() if update.by == "random" else make_criterion() for name in targets}
    for criterion in criteria.values():
        criterion.check(update.competition(criterion.scope), update.pattern)
    before = {name: _matrix_of(current, name, view) for name, view in targets.items()}
    _observe(network, targets, criteria, evidence)
    _survey(network, targets, before, criteria, evidence)
    gradients = _gradients_to_grow_by(update, targets, evidence)
    reshard(network)  # of a network that has computed something, some parameters are whole ones
    generators = {name: seeds.generator("selection", name) for name in targets}
    together = channel_groups is not None or update.competition(next(iter(criteria.values())).scope) == "global"
    all_scores, all_masks = dict[str, Tensor](), dict[str, Tensor]()
    if together:
        all_scores = {name: _scores(criteria[name], name, view, generators[name]) for name, view in targets.items()}
        all_masks = select_together(update, targets, all_scores, before, channel_groups)
    chosen = Chosen({}, {}, {}, {})
    for name, view in targets.items():
        criterion, generator = criteria.pop(name), generators[name]
        scores = all_scores.pop(name) if together else _scores(criterion, name, view, generator)
        kept = all_masks[name] if together else _select(update, name, view, criterion, scores, before[name], generator)
        repaired = _repair(criterion, view, kept)
        if repaired is not None:
            chosen.repaired[name] = shard_like(repaired, view.weight)
        mask = kept if update.grow is None else _grow(update, name, view, kept, gradients.get(name), generator)
        chosen.pruned[name], chosen.masks[name] = view.from_matrix(kept), view.from_matrix(mask)
        chosen.layers[name] = _describe(update.targets[name], mask, scores)
        del scores, repaired  # before there are those of the next layer
    return chosen


def _channel_groups(update: MaskUpdate, channel_groups: ChannelGroups | None) -> ChannelGroups | None:
    """Return the channels that an update chooses from; ``None`` where it does not."""
    if not isinstance(update.pattern, Channels):
        return None
    if channel_groups is None:
        raise ConfigError("pattern 'channels' needs to know where channels flow; run the network on samples before")
    channel_groups.check(update.targets)
    return channel_groups


@attrs.frozen
class _Draw(Criterion):
    """Ranks at random: what takes the criterion's place where an update asks for it."""

    name = "random draw"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(weight.shape, generator=generator).to(weight.device)


def _reopen(layers: Mapping[str, LayerView], current: Mapping[str, Tensor]) -> Chosen:
    """Let all connections come back: nobody is asked."""
    masks = {
        name: torch.ones(view.weight.shape, dtype=torch.bool, device=view.weight.device)
        for name, view in layers.items()
    }
    before = {name: current.get(name, mask) for name, mask in masks.items()}
    told = {name: LayerUpdate(1.0, mask.numel(), mask.numel(), nan, nan) for name, mask in masks.items()}
    return Chosen(masks, before, {}, told)


def _observe(
    network: nn.Module, layers: Mapping[str, LayerView], criteria: Mapping[str, Criterion], evidence: Evidence
) -> None:
    needs = {need for criterion in criteria.values() for need in criterion.needs}
    if "training" in needs:
        _give_traces(layers, criteria, evidence.traces)
    if not any(observes(criterion) for criterion in criteria.values()):
        return
    show = evidence.gradients if "gradients" in needs else evidence.activations
    if show is None:
        name = next(iter(criteria.values())).name
        wanted = "a loss and training batches" if "gradients" in needs else "batches to observe"
        raise ConfigError(f"criterion {name!r} needs {' and '.join(sorted(needs))}: give it {wanted}")
    observe(network, layers, criteria, evidence, show)


def _give_traces(
    layers: Mapping[str, LayerView], criteria: Mapping[str, Criterion], traces: Mapping[str, Tensor] | None
) -> None:
    for name, criterion in criteria.items():
        if traces is None:
            raise ConfigError(
                f"criterion {criterion.name!r} ranks by what training steps did, and no training is seen here; "
                f"prune within a run: prunekit run --criterion {criterion.name} --schedule gradual"
            )
        if name not in traces:
            raise ConfigError(
                f"criterion {criterion.name!r} ranks by what training steps did, but layer {name!r} is to be pruned "
                "before any; train before (a longer stage, a schedule such as gradual)"
            )
        criterion.take_trace(layers[name].to_matrix(full_tensor(traces[name])))


def _survey(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    before: Mapping[str, Tensor | None],
    criteria: Mapping[str, Criterion],
    evidence: Evidence,
) -> None:
    """Let one of the criteria look at all layers, and give each what was found of its own."""
    networked = {name: item for name, item in criteria.items() if isinstance(item, NetworkCriterion)}
    if not networked:
        return
    masks = {name: mask for name, mask in before.items() if mask is not None}
    found = survey(network, layers, masks, next(iter(networked.values())), evidence)
    for name, criterion in networked.items():
        criterion.found = found[name]


def _matrix_of(current: Mapping[str, Tensor], name: str, view: LayerView) -> Tensor | None:
    mask = current.get(name)
    return None if mask is None or bool(mask.all()) else view.to_matrix(mask)


def _scores(criterion: Criterion, name: str, view: LayerView, generator: torch.Generator) -> Tensor:
    weight = view.to_matrix(full_tensor(view.weight))
    with torch.no_grad():
        scores = criterion.score(weight, generator)
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise PluginError(
            f"criterion {criterion.name!r} scored layer {name!r} with {scores.dtype} {tuple(scores.shape)}, "
            f"expected floats {tuple(weight.shape)}"
        )
    if bool(scores.isnan().any()):
        raise PluginError(f"criterion {criterion.name!r} gave NaN scores for layer {name!r}; are its weights finite?")
    return scores


def _select(
    update: MaskUpdate,
    name: str,
    view: LayerView,
    criterion: Criterion,
    scores: Tensor,
    before: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Select from one layer."""
    there = scores.numel() if before is None else int(before.sum())
    # A layer that is to grow keeps what it has; growth fills it up.
    count = min(count_left(update, name, view), there)
    scope = update.competition(criterion.scope)
    assert scope != "global", "layers that compete with each other are selected together"
    quota = Quota(count / scores.numel(), view.fan_shape, scope, update.pattern, before)
    with torch.no_grad():
        mask = criterion.select(scores, quota, generator)
    kept = int(mask.sum()) if mask.dtype == torch.bool else -1
    if mask.shape != scores.shape or kept != count:
        found = f"{kept} of {mask.numel()}" if kept >= 0 else f"a {mask.dtype} tensor"
        raise PluginError(
            f"criterion {criterion.name!r} kept {found} connections of layer {name!r}, "
            f"expected exactly {count} as bool {tuple(scores.shape)}"
        )
    return mask


def _repair(criterion: Criterion, view: LayerView, mask: Tensor) -> Tensor | None:
    with torch.no_grad():
        weight = view.to_matrix(full_tensor(view.weight))
        repaired = criterion.reconstruct(weight, mask)
    return None if repaired is weight else view.from_matrix(repaired)


def _gradients_to_grow_by(update: MaskUpdate, layers: Mapping[str, LayerView], evidence: Evidence) -> dict[str, Tensor]:
    """Return the gradients that an update grows by, of the weights' shapes; nothing where it does not."""
    if update.grow is None or update.grow.by != "gradient":
        return {}
    if evidence.gradients is None:
        raise ConfigError("growing by gradient needs a loss and training batches")
    return summed_gradients(layers, evidence.gradients)


def _grow(
    update: MaskUpdate,
    name: str,
    view: LayerView,
    mask: Tensor,
    gradient: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Fill a layer up to its density, from all that is dropped now (the just-dropped too, as RigL does)."""
    assert update.grow is not None
    if update.grow.by == "random":
        wish = torch.rand(mask.shape, generator=generator)
    else:  # a layer that no gradient reaches wishes nothing
        wish = torch.zeros(mask.shape) if gradient is None else view.to_matrix(full_tensor(gradient)).abs()
    missing = kept_count(update.targets[name], mask.numel()) - int(mask.sum())
    quota = Quota(missing / mask.numel(), view.fan_shape, candidates=~mask)
    return mask | keep_best(wish.to(mask.device).float(), quota) if missing > 0 else mask


def _describe(asked: float, mask: Tensor, scores: Tensor) -> LayerUpdate:
    finite = scores.isfinite()
    # Zeros in the place of the others: picking values out would take many times as long.
    known = torch.where(finite, scores, 0.0).double()
    return LayerUpdate(
        requested=asked,
        kept=int(mask.count_nonzero()),
        weights=mask.numel(),
        mean_kept_score=float((known * mask).sum()) / max(1, int((finite & mask).count_nonzero())),
        mean_score=float(known.sum()) / max(1, int(finite.count_nonzero())),
    )
