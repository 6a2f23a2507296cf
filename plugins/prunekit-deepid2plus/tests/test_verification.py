import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.verification import accuracy, best_threshold, curve_of
from torch import Tensor

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
    assert curve_of(scores, same).area == pytest.approx(area_by_loops(scores, same, torch.ones_like(weights)))
    assert curve_of(scores, same, weights).area == pytest.approx(area_by_loops(scores, same, weights))


@settings(deadline=None, max_examples=60)
@given(scored_pairs, st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
def test_true_accepts_is_the_most_that_the_false_accept_rate_allows(pairs: tuple[Tensor, Tensor], rate: float) -> None:
    scores, same = pairs
    best = 0.0
    for threshold in [*(float(score) for score in scores), math.inf]:
        accepted = scores >= threshold
        if float(accepted[~same].double().mean()) <= rate:
            best = max(best, float(accepted[same].double().mean()))
    assert curve_of(scores, same).true_accepts(rate) == pytest.approx(best)


@settings(deadline=None, max_examples=60)
@given(scored_pairs)
def test_the_curve_passes_through_what_each_threshold_accepts(pairs: tuple[Tensor, Tensor]) -> None:
    scores, same = pairs
    curve = curve_of(scores, same)
    points = list(zip(curve.impostor.tolist(), curve.genuine.tolist(), strict=True))
    thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
    accepted = [scores >= threshold for threshold in thresholds]
    assert points == [(float(a[~same].double().mean()), float(a[same].double().mean())) for a in accepted]


def test_a_fold_does_not_move_its_own_threshold() -> None:
    scores = torch.tensor([0.9, 0.8, 0.2, 0.1] * 3)
    same = torch.tensor([True, True, False, False] * 3)
    fold = torch.arange(3).repeat_interleave(4)
    assert accuracy(scores, same, fold)[0] == 1
    # With a say in it, the fold of wrong labels would accept nobody and be half right. Without, it is all wrong, and
    # the others, of whose pairs half are now wrong, accept nobody.
    assert accuracy(scores, same ^ (fold == 1), fold)[0] == pytest.approx((0.5 + 0 + 0.5) / 3)
