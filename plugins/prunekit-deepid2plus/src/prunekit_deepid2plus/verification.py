"""Measures of face verification from scores of pairs: accuracy, area under the curve, rates at a false accept rate.

Higher score = more alike; a pair is accepted when its score reaches the threshold. Scores may tie; every measure
treats tied pairs as one step. This module must not know images or networks.
"""

import math

import attrs
import torch
from torch import Tensor, nn

from prunekit.seeds import Seeds


@attrs.frozen(eq=False)
class Pairs:
    """Pairs of faces to verify.

    Attributes:
        first: image numbers ``[pairs]``, int64.
        second: image numbers ``[pairs]``.
        same: whether the pair shows one person, bool.
        fold: the fold of each pair, 0, 1, ...
    """

    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of each pair of rows."""
    return nn.functional.cosine_similarity(first, second)


def _steps(scores: Tensor, same: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort by falling score; after each distinct score: score, genuine and impostor weight accepted so far."""
    scores, order = scores.sort(descending=True, stable=True)
    genuine = (weights * same)[order].cumsum(0)
    impostor = (weights * ~same)[order].cumsum(0)
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    return scores[last], genuine[last], impostor[last]


def _unit(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.float64)


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """Return the threshold of greatest accuracy, half way to the next lower score; of several, the highest."""
    values, genuine, impostor = _steps(scores, same, _unit(scores))
    gain = torch.cat([genuine.new_zeros(1), genuine - impostor])  # accepting nobody comes first
    best = int(gain.argmax())
    bounds = torch.cat([values.new_tensor([math.inf]), values, values.new_tensor([-math.inf])]).double()
    if best == 0:
        return math.inf
    return float((bounds[best] + bounds[best + 1]) / 2)


def accuracy(scores: Tensor, same: Tensor, fold: Tensor) -> tuple[float, float]:
    """Return the mean accuracy over folds, each with the threshold of the other folds, and its standard error.

    Args:
        scores: ``[pairs]``.
        same: ``[pairs]``, bool.
        fold: ``[pairs]``; at least two different values.
    """
    results = []
    for number in torch.unique(fold):
        here = fold == number
        threshold = best_threshold(scores[~here], same[~here])
        results.append(((scores[here] >= threshold) == same[here]).double().mean())
    found = torch.stack(results)
    return float(found.mean()), float(found.std() / math.sqrt(len(found)))


def area_under_curve(scores: Tensor, same: Tensor, weights: Tensor | None = None) -> float:
    """Return the chance that a genuine pair scores above an impostor pair; a tie counts half.

    Args:
        scores: ``[pairs]``.
        same: ``[pairs]``, bool.
        weights: how much each pair counts; all alike by default.
    """
    _, genuine, impostor = _steps(scores, same, _unit(scores) if weights is None else weights.double())
    rate = torch.cat([genuine.new_zeros(1), genuine])
    width = impostor.diff(prepend=impostor.new_zeros(1))
    return float(((rate[1:] + rate[:-1]) / 2 * width).sum() / (genuine[-1] * impostor[-1]))


def true_accepts(scores: Tensor, same: Tensor, false_accept_rate: float) -> float:
    """Return the greatest share of genuine pairs accepted while at most that share of impostors is."""
    _, genuine, impostor = _steps(scores, same, _unit(scores))
    allowed = genuine[impostor / impostor[-1] <= false_accept_rate]
    return float(allowed[-1] / genuine[-1]) if len(allowed) else 0.0


def area_by_person(features: Tensor, people: Tensor) -> float:
    """Return the area under the curve of the cosine over all pairs of images, each person weighted alike.

    The genuine pairs of a person together weigh 1; so do the impostor pairs of two people. A few much-photographed
    people then do not decide the figure.

    Args:
        features: ``[images, values]``.
        people: person numbers 0, 1, ... ``[images]``.
    """
    unit = nn.functional.normalize(features)
    counts = people.bincount().double()
    first, second = torch.triu_indices(len(people), len(people), offset=1)
    same = people[first] == people[second]
    with torch.autocast(unit.device.type, enabled=False):  # in bf16 most scores would tie
        scores = (unit @ unit.T)[first, second]
    a, b = counts[people[first]], counts[people[second]]
    weights = torch.where(same, 2 / (a * (b - 1)), 1 / (a * b))
    return area_under_curve(scores, same, weights)


def balanced_pairs(people: Tensor, seeds: Seeds, folds: int = 10, most: int = 300) -> Pairs:
    """Draw as many pairs of one person as of two; no person is in two folds.

    People are dealt to folds at random. A fold has the pairs of one person, drawn from people in turn so that a
    much-photographed person does not fill it, and as many pairs of two of its people.

    Args:
        people: person numbers ``[images]``; at least four people, each with two images or more.
        seeds: the draw is the same for the same seeds.
        folds: folds wanted; fewer where there would not be two people in each.
        most: most pairs of each kind in a fold.
    """
    generator = seeds.generator("verification pairs")
    known = torch.unique(people)
    known = known[torch.randperm(len(known), generator=generator)]
    folds = min(folds, len(known) // 2)
    turns = occurrences(people)
    parts: list[tuple[Tensor, bool, int]] = []
    for number in range(folds):
        # Bounds what is enumerated: at most 2,000 images, 2 million pairs.
        members = torch.isin(people, known[number::folds][:200]) & (turns < 10)  # noqa: PLR2004
        images = members.nonzero().flatten()
        pairs = torch.combinations(images)
        pairs = pairs[torch.randperm(len(pairs), generator=generator)]
        owner = people[pairs]
        same = owner[:, 0] == owner[:, 1]
        genuine, impostor = pairs[same], pairs[~same]
        genuine = genuine[occurrences(people[genuine[:, 0]]).argsort(stable=True)]
        count = min(most, len(genuine), len(impostor))
        parts += [(genuine[:count], True, number), (impostor[:count], False, number)]
    first, second = torch.cat([pairs for pairs, _, _ in parts]).T
    lengths = torch.tensor([len(pairs) for pairs, _, _ in parts])
    same = torch.tensor([same for _, same, _ in parts]).repeat_interleave(lengths)
    fold = torch.tensor([number for _, _, number in parts]).repeat_interleave(lengths)
    return Pairs(first, second, same, fold)


def occurrences(owners: Tensor) -> Tensor:
    """Return for each entry how many before it are equal to it; entries are 0, 1, ..."""
    order = owners.argsort(stable=True)
    counts = owners.bincount()
    first = counts.cumsum(0) - counts
    turns = torch.empty_like(owners)
    turns[order] = torch.arange(len(owners)) - first[owners[order]]
    return turns
