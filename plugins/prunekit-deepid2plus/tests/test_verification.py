import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.verification import (
    accuracy,
    area_by_person,
    area_under_curve,
    balanced_pairs,
    best_threshold,
    cosine,
    occurrences,
    true_accepts,
)
from torch import Tensor

from prunekit.seeds import Seeds

# Few different scores, so that ties are common; the first two pairs are one of each kind.
scored_pairs = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=25).map(
    lambda pairs: (
        torch.tensor([0.0, 1.0] + [float(score) for score, _ in pairs]),
        torch.tensor([True, False] + [same for _, same in pairs]),
    )
)


def correct(scores: Tensor, same: Tensor, threshold: float) -> int:
    return int(((scores >= threshold) == same).sum())


@settings(deadline=None, max_examples=60)
@given(scored_pairs)
def test_no_threshold_is_better_than_the_best(pairs: tuple[Tensor, Tensor]) -> None:
    scores, same = pairs
    tried = [-math.inf, *(float(score) for score in scores), math.inf]
    assert correct(scores, same, best_threshold(scores, same)) == max(correct(scores, same, t) for t in tried)


def test_the_threshold_lies_half_way_between_two_scores() -> None:
    assert best_threshold(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, True, False])) == 1.5


def test_accuracy_takes_the_threshold_of_each_fold_from_the_others() -> None:
    scores = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.4, 0.2])
    same = torch.tensor([True, False, True, False, True, False])
    fold = torch.tensor([0, 0, 1, 1, 2, 2])
    # The others part at 0.5 for fold 2, which accepts nobody: half right. Folds 0 and 1 are right.
    mean, error = accuracy(scores, same, fold)
    assert mean == pytest.approx((1 + 1 + 0.5) / 3)
    assert error == pytest.approx(0.5 / 3)  # deviations 1/6, 1/6, -1/3 over 3 - 1, then over sqrt(3)


def area_by_loops(scores: Tensor, same: Tensor, weights: Tensor) -> float:
    above = total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if same[i] and not same[j]:
                weight = float(weights[i] * weights[j])
                total += weight
                above += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return above / total


@settings(deadline=None, max_examples=60)
@given(scored_pairs, st.integers(0, 100))
def test_the_area_is_the_chance_of_the_right_order_with_ties_half(pairs: tuple[Tensor, Tensor], seed: int) -> None:
    scores, same = pairs
    weights = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)).double() + 0.1
    assert area_under_curve(scores, same) == pytest.approx(area_by_loops(scores, same, torch.ones_like(weights)))
    assert area_under_curve(scores, same, weights) == pytest.approx(area_by_loops(scores, same, weights))


@settings(deadline=None, max_examples=60)
@given(scored_pairs, st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
def test_true_accepts_is_the_most_that_the_false_accept_rate_allows(pairs: tuple[Tensor, Tensor], rate: float) -> None:
    scores, same = pairs
    best = 0.0
    for threshold in [*(float(score) for score in scores), math.inf]:
        accepted = scores >= threshold
        if float(accepted[~same].double().mean()) <= rate:
            best = max(best, float(accepted[same].double().mean()))
    assert true_accepts(scores, same, rate) == pytest.approx(best)


def test_area_by_person_gives_each_person_and_each_pair_of_people_one_vote() -> None:
    people = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(5))
    scores, same, weights = [], [], []
    for i in range(7):
        for j in range(i):
            one, other = int(people[i]), int(people[j])
            pairs = [
                (a, b) for a in range(7) for b in range(a) if sorted((people[a], people[b])) == sorted((one, other))
            ]
            scores.append(float(cosine(features[[i]], features[[j]])))
            same.append(one == other)
            weights.append(1 / len(pairs))
    expected = area_by_loops(torch.tensor(scores), torch.tensor(same), torch.tensor(weights))
    assert area_by_person(features, people) == pytest.approx(expected, abs=1e-6)


def test_measures_are_exact_under_bf16_autocast() -> None:
    people = torch.arange(60) // 3
    features = torch.randn(20, 8)[people] + torch.randn(60, 8)
    with torch.autocast("cpu", torch.bfloat16):
        lower = area_by_person(features, people)
    assert lower == area_by_person(features, people)


def test_occurrences_counts_the_equal_entries_before() -> None:
    assert occurrences(torch.tensor([2, 0, 2, 2, 0, 1])).tolist() == [0, 0, 1, 2, 1, 0]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(2, 6), min_size=4, max_size=30), st.integers(0, 100))
def test_pairs_are_balanced_distinct_and_share_nobody_over_folds(counts: list[int], seed: int) -> None:
    people = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pairs = balanced_pairs(people, Seeds(seed), folds=10, most=8)
    folds = min(10, len(counts) // 2)
    assert torch.unique(pairs.fold).tolist() == list(range(folds))
    assert torch.equal(people[pairs.first] == people[pairs.second], pairs.same)
    assert len({frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == len(
        pairs.same
    )
    groups = []
    for fold in range(folds):
        here = pairs.fold == fold
        assert 0 < int((pairs.same & here).sum()) == int((~pairs.same & here).sum()) <= 8
        groups.append(set(people[torch.cat([pairs.first[here], pairs.second[here]])].tolist()))
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_a_much_photographed_person_does_not_fill_a_fold() -> None:
    people = torch.tensor([0] * 10 + [1, 1] + [2] * 2 + [3] * 2)
    pairs = balanced_pairs(people, Seeds(0), folds=1, most=4)
    assert sorted(people[pairs.first[pairs.same]].tolist()) == [0, 1, 2, 3]
