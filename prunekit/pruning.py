"""One mask update: observe, score, select, repair, grow.

Both the engine and ``prunekit.select`` come here. This module decides which connections stay; holding
them at zero is the business of ``masks``, and when to update is that of the schedule.
"""

from collections.abc import Callable, Mapping
from math import nan

import attrs
import torch
from torch import Tensor, nn

from prunekit.criteria import Criterion, NetworkCriterion, observes
from prunekit.errors import ConfigError, MaskError, PluginError
from prunekit.events import LayerUpdate
from prunekit.layers import LayerView
from prunekit.observing import Evidence, observe, summed_gradients, survey
from prunekit.schedules import MaskUpdate, check_target
from prunekit.seeds import Seeds
from prunekit.selection import Blocks, Pattern, Quota, among, asked_count, keep_best, keep_best_global, kept_count


@attrs.frozen
class Chosen:
    """The outcome of an update.

    Attributes:
        masks: layer -> mask of the weight's shape.
        pruned: the same before growth: what is in ``masks`` but not here starts from zero.
        repaired: layer -> weight to go on with, for layers whose kept weights the criterion changed.
        layers: layer -> what became of it.
    """

    masks: Mapping[str, Tensor]
    pruned: Mapping[str, Tensor]
    repaired: Mapping[str, Tensor]
    layers: Mapping[str, LayerUpdate]


def choose_masks(
    network: nn.Module,
    layers: Mapping[str, LayerView],
    update: MaskUpdate,
    current: Mapping[str, Tensor],
    make_criterion: Callable[[], Criterion],
    evidence: Evidence,
    seeds: Seeds,
) -> Chosen:
    """Work out one mask update for the weights as they are. Changes nothing.

    Args:
        network: the network that the layers are in.
        layers: all prunable layers by name.
        update: what is asked.
        current: layer -> mask so far (bool, the weight's shape); a layer not named is dense.
        make_criterion: returns a fresh criterion.
        evidence: where criteria get activations and gradients.
        seeds: the seeds of this update; every layer draws from a generator of its own.

    Raises:
        ConfigError: when a criterion needs data that ``evidence`` does not have.
        MaskError: when the count cannot be met.
        PluginError: when a criterion returns scores or masks that are none.
    """
    targets = {name: layers[name] for name in update.targets}
    if update.reopens:
        return _reopen(targets, current)
    for name, view in targets.items():
        check_target(update, view.shape(name))
    criteria = {name: _Draw() if update.by == "random" else make_criterion() for name in targets}
    for criterion in criteria.values():
        criterion.check(update.competition(criterion.scope), update.pattern)
    before = {name: _matrix_of(current, name, view) for name, view in targets.items()}
    _observe(network, targets, criteria, evidence)
    _survey(network, targets, before, criteria, evidence)
    generators = {name: seeds.generator("selection", name) for name in targets}
    scores = {name: _scores(criteria[name], name, view, generators[name]) for name, view in targets.items()}
    masks = _select(update, targets, criteria, scores, before, generators)
    repaired = {name: _repair(criteria[name], view, masks[name]) for name, view in targets.items()}
    pruned = masks
    if update.grow is not None:
        masks = _grow(update, targets, masks, evidence, generators)
    return Chosen(
        {name: view.from_matrix(masks[name]) for name, view in targets.items()},
        {name: view.from_matrix(pruned[name]) for name, view in targets.items()},
        {name: weight for name, weight in repaired.items() if weight is not None},
        {name: _describe(update.targets[name], masks[name], scores[name]) for name in targets},
    )


@attrs.frozen
class _Draw(Criterion):
    """Ranks at random: what takes the criterion's place where an update asks for it."""

    name = "random draw"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(weight.shape, generator=generator).to(weight.device)


def _reopen(layers: Mapping[str, LayerView], current: Mapping[str, Tensor]) -> Chosen:
    """Let all connections come back: nobody is asked."""
    whole = {name: torch.ones_like(view.weight, dtype=torch.bool) for name, view in layers.items()}
    before = {name: current.get(name, mask) for name, mask in whole.items()}
    told = {name: LayerUpdate(1.0, mask.numel(), mask.numel(), nan, nan) for name, mask in whole.items()}
    return Chosen(whole, before, {}, told)


def _observe(
    network: nn.Module, layers: Mapping[str, LayerView], criteria: Mapping[str, Criterion], evidence: Evidence
) -> None:
    needs = {need for criterion in criteria.values() for need in criterion.needs}
    if "training" in needs:
        _give_traces(criteria, evidence.traces)
    if not any(observes(criterion) for criterion in criteria.values()):
        return
    show = evidence.gradients if "gradients" in needs else evidence.activations
    if show is None:
        name = next(iter(criteria.values())).name
        wanted = "a loss and training batches" if "gradients" in needs else "batches to observe"
        raise ConfigError(f"criterion {name!r} needs {' and '.join(sorted(needs))}: give it {wanted}")
    observe(network, layers, criteria, evidence, show)


def _give_traces(criteria: Mapping[str, Criterion], traces: Mapping[str, Tensor] | None) -> None:
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
        criterion.take_trace(traces[name])


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
    weight = view.to_matrix(view.weight.detach())
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
    layers: Mapping[str, LayerView],
    criteria: Mapping[str, Criterion],
    scores: Mapping[str, Tensor],
    before: Mapping[str, Tensor | None],
    generators: Mapping[str, torch.Generator],
) -> dict[str, Tensor]:
    exchanged = update.grow.fraction if update.grow is not None else 0.0
    there = {name: scores[name].numel() if (old := before[name]) is None else int(old.sum()) for name in layers}
    counts = {
        name: asked_count(update.targets[name] * (1 - exchanged), scores[name].numel(), update.pattern, view.fan)
        for name, view in layers.items()
    }
    scope = update.competition(next(iter(criteria.values())).scope)
    if scope == "global":
        ranked = {name: among(score, before[name]) for name, score in scores.items()}
        return _keep_best_global(ranked, sum(counts.values()), before, update.pattern)
    # A layer that is to grow keeps what it has; growth fills it up.
    counts = {name: min(count, there[name]) for name, count in counts.items()}
    masks = {}
    for name, view in layers.items():
        quota = Quota(counts[name] / scores[name].numel(), view.fan_shape, scope, update.pattern, before[name])
        with torch.no_grad():
            masks[name] = criteria[name].select(scores[name], quota, generators[name])
        kept = int(masks[name].sum()) if masks[name].dtype == torch.bool else -1
        if masks[name].shape != scores[name].shape or kept != counts[name]:
            found = f"{kept} of {masks[name].numel()}" if kept >= 0 else f"a {masks[name].dtype} tensor"
            raise PluginError(
                f"criterion {criteria[name].name!r} kept {found} connections of layer {name!r}, "
                f"expected exactly {counts[name]} as bool {tuple(scores[name].shape)}"
            )
    return masks


def _keep_best_global(
    scores: Mapping[str, Tensor], count: int, before: Mapping[str, Tensor | None], pattern: Pattern | None
) -> dict[str, Tensor]:
    if not isinstance(pattern, Blocks):  # no other pattern competes over layers, see ``check_target``
        there = sum(scores[name].numel() if mask is None else int(mask.sum()) for name, mask in before.items())
        return keep_best_global(scores, min(count, there))
    masks = keep_best_global(scores, count, pattern)
    for name, mask in before.items():
        if mask is not None and bool((masks[name] & ~mask).any()):
            raise MaskError(f"{count} connections are asked for, but fewer are left in whole blocks of {pattern}")
    return masks


def _repair(criterion: Criterion, view: LayerView, mask: Tensor) -> Tensor | None:
    with torch.no_grad():
        weight = view.to_matrix(view.weight.detach())
        repaired = criterion.reconstruct(weight, mask)
    return None if repaired is weight else view.from_matrix(repaired)


def _grow(
    update: MaskUpdate,
    layers: Mapping[str, LayerView],
    masks: Mapping[str, Tensor],
    evidence: Evidence,
    generators: Mapping[str, torch.Generator],
) -> dict[str, Tensor]:
    """Fill each layer up to its density, from all that is dropped now (the just-dropped too, as RigL does)."""
    assert update.grow is not None
    if update.grow.by == "gradient":
        if evidence.gradients is None:
            raise ConfigError("growing by gradient needs a loss and training batches")
        gradients = summed_gradients(layers, evidence.gradients)
        wish = {name: gradients[name].abs() if name in gradients else torch.zeros_like(masks[name]) for name in layers}
    else:
        wish = {name: torch.rand(mask.shape, generator=generators[name]) for name, mask in masks.items()}
    grown = {}
    for name, mask in masks.items():
        missing = kept_count(update.targets[name], mask.numel()) - int(mask.sum())
        quota = Quota(missing / mask.numel(), layers[name].fan_shape, candidates=~mask)
        grown[name] = mask | keep_best(wish[name].to(mask.device).float(), quota) if missing > 0 else mask
    return grown


def _describe(asked: float, mask: Tensor, scores: Tensor) -> LayerUpdate:
    finite = scores.isfinite()
    # Zeros in the place of the others: picking values out would take many times as long.
    known = torch.where(finite, scores, 0.0).double()
    return LayerUpdate(
        asked=asked,
        kept=int(mask.count_nonzero()),
        weights=mask.numel(),
        mean_kept_score=float((known * mask).sum()) / max(1, int((finite & mask).count_nonzero())),
        mean_score=float(known.sum()) / max(1, int(finite.count_nonzero())),
    )
