"""The ROC over all pairs of images, each person weighted alike, exact.

Only where a genuine score lies does the ROC have corners, so genuine scores alone are kept; impostors, which are
nearly all, are counted between them, a block at a time. This module must not know how faces are compared.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit_deepid2plus.comparable import Comparable
from prunekit_deepid2plus.pairs import pairs_of_one
from prunekit_deepid2plus.verification import Curve, curve_of_steps

PAIRS_AT_ONCE = 2**20
"""Pairs of two people scored at a time: less than 100 MB."""

GENUINE_AT_ONCE = 2**16
"""Pairs of one person scored at a time, each from two vectors: 200 MB at 128 values."""


def curves_by_person(faces: Comparable, people: Tensor, group: Tensor) -> tuple[Curve, Sequence[Curve]]:
    """Return the curve over all pairs of images, and for each group the curve over the pairs within it.

    The genuine pairs of a person together weigh 1; so do the impostor pairs of two people. A few much-photographed
    people then do not decide the figure. Scores are told apart as float32, weights are summed in float64.

    Args:
        faces: the images, with their scores.
        people: person numbers 0, 1, ... ``[images]``; in each group somebody has two images, and there are two people.
        group: the group of each image, 0, 1, ... ``[images]``; all images of a person are in one.
    """
    share = 1 / people.bincount().double()[people]
    first, second = pairs_of_one(people)
    parts = zip(torch.split(first, GENUINE_AT_ONCE), torch.split(second, GENUINE_AT_ONCE), strict=True)
    own = torch.cat([faces.scores(*part).float() for part in parts])
    corners = torch.unique(own)
    groups = int(group.max()) + 1
    slots = 2 * len(corners) + 1
    # A person with n images has n (n - 1) / 2 pairs.
    weights = 2 * share[first].square() / (1 - share[first])
    genuine = _counted(own, corners, group[first], weights, groups + 1)

    impostor = genuine.new_zeros(groups + 1, slots)
    rows = max(1, PAIRS_AT_ONCE // len(faces))
    for start in range(0, len(faces), rows):
        here, there = slice(start, start + rows), slice(start, None)
        apart = (people[here, None] != people[there]).triu_(1)
        weights = share[here, None] * share[there] * apart
        pair_group = torch.where(group[here, None] == group[there], group[there], groups)
        impostor += _counted(faces.matrix(here, there).float(), corners, pair_group, weights, groups + 1)
    # From the highest score down; the last group holds pairs of two groups, which count over all only.
    genuine, impostor = genuine.flip(1), impostor.flip(1)
    of_groups = [curve_of_steps(genuine[number], impostor[number]) for number in range(groups)]
    return curve_of_steps(genuine.sum(0), impostor.sum(0)), of_groups


def _counted(scores: Tensor, corners: Tensor, group: Tensor, weights: Tensor, groups: int) -> Tensor:
    """Return the weight in each group at and between the corners, ``[groups, 2 * corners + 1]``; odd slots are at."""
    below = torch.searchsorted(corners, scores)
    at = corners[below.clamp_max(len(corners) - 1)] == scores
    slots = 2 * len(corners) + 1
    place = group * slots + 2 * below + at
    return place.flatten().bincount(weights.flatten(), minlength=groups * slots).view(groups, slots)
