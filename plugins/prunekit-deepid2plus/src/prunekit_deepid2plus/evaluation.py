"""The figures of a run: its pairs, and all pairs of the people who verify, over all folds and in each.

This module must not know how features are computed or compared.
"""

import torch

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.seeds import Seeds
from prunekit_deepid2plus.all_pairs import curves_by_person
from prunekit_deepid2plus.comparable import Comparable
from prunekit_deepid2plus.data import FaceData
from prunekit_deepid2plus.pairs import evenly_drawn
from prunekit_deepid2plus.verification import accuracy, curve_of

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)

MOST_COMPARED = 12_000
"""Images of which all pairs are compared: 72 million pairs, some ten seconds. Of more, as many are drawn."""


def evaluate_faces(faces: Comparable, data: FaceData, seeds: Seeds) -> Evaluation:
    """Return accuracy, areas and rates of the test faces.

    Args:
        faces: the images of ``data.test``.
        data: whom they show, the pairs, and the folds of a protocol.
        seeds: decide which images are compared where there are too many.
    """
    pairs = data.pairs
    scores = faces.scores(pairs.first, pairs.second)
    mean, error = accuracy(scores, pairs.same, pairs.fold)
    curve = curve_of(scores, pairs.same)
    metrics = {"accuracy": mean, "auc": curve.area}
    # The order is that of importance: tables show the first figures only.
    by_person = _by_person(faces, data, seeds) if data.identified else {}
    metrics |= {"auc_by_person": by_person.pop("auc_by_person")} if by_person else {}
    metrics |= {f"tar_at_far_{rate}": curve.true_accepts(rate) for rate in FALSE_ACCEPT_RATES}
    return Evaluation("accuracy", metrics | by_person, {"accuracy": error})


def _by_person(faces: Comparable, data: FaceData, seeds: Seeds) -> dict[str, float]:
    """Return the figures over all pairs of the people who verify, each person weighted alike."""
    chosen = evenly_drawn(data.test.people, MOST_COMPARED, seeds)
    fold = torch.zeros_like(chosen) if data.test_fold is None else data.test_fold[chosen]
    folds, group = torch.unique(fold, return_inverse=True)
    everybody, of_folds = curves_by_person(faces.take(chosen), data.test.people[chosen], group)
    metrics = {
        "auc_by_person": everybody.area,
        **{f"tar_by_person_at_far_{rate}": everybody.true_accepts(rate) for rate in FALSE_ACCEPT_RATES},
    }
    if data.test_fold is not None:
        areas = zip(folds.tolist(), of_folds, strict=True)
        metrics |= {f"auc_by_person_fold_{number}": one.area for number, one in areas}
    return metrics
