"""Which images are compared: pairs drawn as a protocol would, and all pairs of one person.

Works on person numbers alone; this module must not know images, features or scores.
"""

import attrs
import torch
from torch import Tensor

from prunekit.contracts.seeds import Seeds


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


def pairs_of_one(people: Tensor) -> tuple[Tensor, Tensor]:
    """Return all pairs of two images of one person, each once, as image numbers ``[pairs]``.

    Args:
        people: person numbers 0, 1, ... ``[images]``.
    """
    order = people.argsort(stable=True)
    # In this order an image is followed by those of the same person that it has not been paired with.
    following = people.bincount()[people[order]] - 1 - occurrences(people)[order]
    first = torch.arange(len(people)).repeat_interleave(following)
    second = first + 1 + occurrences(first)
    return order[first], order[second]


def evenly_drawn(people: Tensor, most: int, seeds: Seeds) -> Tensor:
    """Return image numbers, in order: all where there are no more than ``most``, else so many of them.

    People come in a random order, each with two images, then each with the next two, as far as there are any; those
    who have one image, who make no pair of one person, come last.

    Args:
        people: person numbers 0, 1, ... ``[images]``.
        most: most images wanted.
        seeds: the draw is the same for the same seeds.
    """
    if len(people) <= most:
        return torch.arange(len(people))
    shuffled = torch.randperm(len(people), generator=seeds.generator("compared images"))
    owners = people[shuffled]
    turns = occurrences(owners) // 2
    turns[owners.bincount()[owners] == 1] = len(people)
    rank = torch.randperm(int(people.max()) + 1, generator=seeds.generator("compared people"))[owners]
    by_person = rank.argsort(stable=True)
    return shuffled[by_person[turns[by_person].argsort(stable=True)][:most]].sort().values
