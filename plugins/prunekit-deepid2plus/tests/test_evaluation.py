import attrs
import pytest
import torch
from prunekit_deepid2plus import evaluation
from prunekit_deepid2plus.all_pairs import curves_by_person
from prunekit_deepid2plus.comparable import cosine
from prunekit_deepid2plus.data import FaceData, Faces
from prunekit_deepid2plus.evaluation import evaluate_faces
from prunekit_deepid2plus.pairs import balanced_pairs, evenly_drawn

from prunekit.contracts.seeds import Seeds

FOLDS = {"auc_by_person_fold_7", "auc_by_person_fold_8"}


def two_folds() -> tuple[FaceData, torch.Tensor]:
    """Twelve people with three images, of whom the first six are fold 7, and features that tell them apart a little."""
    people = torch.arange(36) // 3
    test = Faces(torch.zeros(36, 3, 1, 1, dtype=torch.uint8), people)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator)[people] + torch.randn(36, 5, generator=generator)
    data = FaceData(test, test, test, balanced_pairs(people, Seeds(0)), test_fold=7 + people // 6)
    return data, features


def test_the_folds_of_a_protocol_are_measured_one_by_one() -> None:
    data, features = two_folds()
    metrics = evaluate_faces(cosine(features), data, Seeds(0)).metrics
    assert set(metrics) >= FOLDS
    plain = evaluate_faces(cosine(features), attrs.evolve(data, test_fold=None), Seeds(0)).metrics
    assert plain == pytest.approx({name: value for name, value in metrics.items() if name not in FOLDS})


def test_what_is_in_one_fold_does_not_move_the_figure_of_another() -> None:
    data, features = two_folds()
    before = evaluate_faces(cosine(features), data, Seeds(0)).metrics
    features[18:] = torch.randn(18, 5)
    after = evaluate_faces(cosine(features), data, Seeds(0)).metrics
    assert {name for name in FOLDS if before[name] == pytest.approx(after[name])} == {"auc_by_person_fold_7"}


def test_where_there_are_too_many_images_two_of_everybody_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    data, features = two_folds()
    monkeypatch.setattr(evaluation, "MOST_COMPARED", 24)
    drawn = evenly_drawn(data.test.people, 24, Seeds(0))
    assert data.test.people[drawn].bincount().tolist() == [2] * 12
    metrics = evaluate_faces(cosine(features), data, Seeds(0)).metrics
    nobody_apart = torch.zeros(24, dtype=torch.int64)
    alone, _ = curves_by_person(cosine(features[drawn]), data.test.people[drawn], nobody_apart)
    assert metrics["auc_by_person"] == pytest.approx(alone.area)
    monkeypatch.setattr(evaluation, "MOST_COMPARED", 36)
    assert metrics["auc_by_person"] != evaluate_faces(cosine(features), data, Seeds(0)).metrics["auc_by_person"]
