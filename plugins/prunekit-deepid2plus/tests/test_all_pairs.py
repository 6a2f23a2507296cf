import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus import all_pairs
from prunekit_deepid2plus.all_pairs import curves_by_person
from prunekit_deepid2plus.comparable import Comparable, cosine
from prunekit_deepid2plus.verification import Curve, curve_of
from torch import Tensor


def slow_curve(faces: Comparable, people: Tensor) -> Curve:
    """All pairs one by one; the pairs of the same two people, or of one person, weigh 1 together."""
    scores, same, weights = [], [], []
    count = len(people)
    for i in range(count):
        for j in range(i):
            owners = sorted((int(people[i]), int(people[j])))
            alike = [1 for a in range(count) for b in range(a) if sorted((int(people[a]), int(people[b]))) == owners]
            scores.append(float(faces.matrix(slice(i, i + 1), slice(j, j + 1)).float()))
            same.append(owners[0] == owners[1])
            weights.append(1 / len(alike))
    return curve_of(torch.tensor(scores), torch.tensor(same), torch.tensor(weights, dtype=torch.float64))


def assert_same_measures(found: Curve, expected: Curve) -> None:
    assert found.area == pytest.approx(expected.area)
    for rate in (0.001, 0.05, 0.1234, 0.377, 0.8, 1.0):
        assert found.true_accepts(rate) == pytest.approx(expected.true_accepts(rate))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 100), st.booleans())
def test_the_curve_gives_each_person_and_each_pair_of_people_one_vote(more: list[int], seed: int, ties: bool) -> None:
    people = torch.tensor([0, 1, 0, 2, *more])
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(people), 2, generator=generator, dtype=torch.float64)
    vectors = vectors.round() if ties else vectors
    faces = Comparable(vectors, vectors[:, 0])
    found, of_groups = curves_by_person(faces, people, torch.zeros_like(people))
    assert_same_measures(found, slow_curve(faces, people))
    assert_same_measures(of_groups[0], slow_curve(faces, people))


def test_each_group_is_measured_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_pairs, "PAIRS_AT_ONCE", 30)  # more than one block
    monkeypatch.setattr(all_pairs, "GENUINE_AT_ONCE", 2)
    people = torch.tensor([3, 0, 1, 1, 2, 0, 3, 4, 2, 1, 5, 3])
    group = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1])
    faces = cosine(torch.randn(12, 3))
    everybody, of_groups = curves_by_person(faces, people, group)
    assert_same_measures(everybody, slow_curve(faces, people))
    for number in (0, 1):
        images = (group == number).nonzero().flatten()
        assert_same_measures(of_groups[number], slow_curve(faces.take(images), people[images]))
