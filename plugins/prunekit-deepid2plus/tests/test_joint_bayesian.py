import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus import joint_bayesian
from prunekit_deepid2plus.comparable import Comparable, cosine
from prunekit_deepid2plus.joint_bayesian import JointBayesian, fit_joint_bayesian
from prunekit_deepid2plus.verification import curve_of
from torch import Tensor

EVERYTHING = slice(None)


def covariance(values: int, scale: float, seed: int) -> Tensor:
    factor = torch.randn(values, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * (factor @ factor.T / values + 0.1 * torch.eye(values, dtype=torch.float64))


def drawn(between: Tensor, within: Tensor, counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Features from the model itself: x = mu + epsilon."""
    generator = torch.Generator().manual_seed(seed)
    people = torch.arange(len(counts)).repeat_interleave(counts)

    def normal(samples: int, of: Tensor) -> Tensor:
        standard = torch.randn(samples, len(of), generator=generator, dtype=torch.float64)
        return standard @ torch.linalg.cholesky(of).T

    return normal(len(counts), between)[people] + normal(len(people), within) + 3, people


def likelihood(between: Tensor, within: Tensor, centred: Tensor, people: Tensor) -> float:
    """The logarithm, person by person with the covariance of all the images of one at once."""
    total = 0.0
    for person in people.unique():
        images = centred[people == person]
        count = len(images)
        whole = torch.kron(torch.ones(count, count).double(), between) + torch.kron(torch.eye(count).double(), within)
        total += float(
            torch.distributions.MultivariateNormal(images.new_zeros(images.numel()), whole).log_prob(images.flatten())
        )
    return total


def test_the_covariances_that_data_were_drawn_with_are_recovered() -> None:
    between, within = covariance(6, 1.0, 0), covariance(6, 2.0, 1)
    counts = torch.randint(1, 6, (4000,), generator=torch.Generator().manual_seed(2))
    model = fit_joint_bayesian(*drawn(between, within, counts, 3))
    # The sample covariance of 4,000 people is itself 4 % off: sqrt((values + 1) / people).
    assert float((model.between - between).norm() / between.norm()) < 0.06
    assert float((model.within - within).norm() / within.norm()) < 0.04


def test_it_beats_cosine_on_data_of_its_own_model() -> None:
    between, within = covariance(8, 1.0, 4), covariance(8, 1.0, 5)
    model = fit_joint_bayesian(*drawn(between, within, torch.full((600,), 4), 6))
    features, people = drawn(between, within, torch.full((200,), 2), 7)
    first, second = torch.triu_indices(400, 400, offset=1)
    same = people[first] == people[second]

    def area(faces: Comparable) -> float:
        return curve_of(faces.scores(first, second), same).area

    assert area(model.comparable(features)) > area(cosine(features - model.mean)) + 0.02


def test_the_score_is_that_of_the_published_formulas() -> None:
    between, within, mean = covariance(5, 1.0, 8), covariance(5, 0.3, 9), torch.randn(5).double()
    features = torch.randn(4, 5).double()
    total = between + within
    whole = torch.cat([torch.cat([total, between], 1), torch.cat([between, total], 1)]).inverse()
    with_f, g = whole[:5, :5], whole[:5, 5:]  # F + G and G of the inverse below equation (5)
    a = total.inverse() - with_f  # equation (5)
    torch.testing.assert_close(g, -(2 * between + within).inverse() @ between @ within.inverse())
    x = features - mean
    expected = torch.stack([torch.stack([i @ a @ i + j @ a @ j - 2 * i @ g @ j for j in x]) for i in x])
    found = JointBayesian(mean, between, within).comparable(features)
    torch.testing.assert_close(found.matrix(EVERYTHING, EVERYTHING), expected)


def test_the_score_is_twice_the_logarithm_of_the_likelihood_ratio_but_for_a_constant() -> None:
    between, within = covariance(3, 1.0, 10), covariance(3, 1.0, 11)
    features = torch.randn(6, 3).double()
    found = JointBayesian(torch.zeros(3).double(), between, within).comparable(features)
    one, two = torch.tensor([0, 0]), torch.tensor([0, 1])
    ratios = torch.tensor(
        [
            likelihood(between, within, features[[i, i + 1]], one)
            - likelihood(between, within, features[[i, i + 1]], two)
            for i in range(5)
        ],
        dtype=torch.float64,
    )
    rest = found.scores(torch.arange(5), torch.arange(1, 6)) - 2 * ratios
    torch.testing.assert_close(rest, rest[:1].expand(5))


def test_what_is_expected_of_a_person_is_equation_7() -> None:
    between, within = covariance(4, 1.0, 12), covariance(4, 2.0, 13)
    variances, basis, inverse = joint_bayesian._diagonal(between, within)
    for count in (1, 2, 7):
        images = torch.randn(count, 4).double()
        f = within.inverse()
        g = -(count * between + within).inverse() @ between @ f
        expected = sum(between @ (f + count * g) @ image for image in images)
        left = between - between @ (between + within / count).inverse() @ between  # of a Gaussian given another
        counts = torch.tensor([[float(count)]]).double()
        mean, variance = joint_bayesian._expected(variances, images.mean(0, keepdim=True) @ basis, counts)
        torch.testing.assert_close((mean @ inverse)[0], expected)
        torch.testing.assert_close(inverse.T @ variance[0].diag() @ inverse, left)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 4), max_size=5), st.integers(0, 100))
def test_an_iteration_never_lowers_the_likelihood(more: list[int], seed: int) -> None:
    # With fewer images the likelihood has no bound: the deviations of two people lie on a line.
    counts = torch.tensor([2, 3, 4, *more])
    features, people = drawn(covariance(2, 1.0, seed), covariance(2, 1.0, seed + 1), counts, seed + 2)
    statistics = joint_bayesian._statistics(features - features.mean(0), people)
    guess = joint_bayesian._first_guess(statistics)
    values = []
    for _ in range(6):
        values.append(likelihood(*guess, features - features.mean(0), people))
        guess = joint_bayesian._improved(*guess, statistics)
    # The floor under the variance, a millionth, is not part of the likelihood.
    assert all(later >= earlier - 1e-4 for earlier, later in pairwise(values))


def test_a_rotation_and_a_shift_of_all_features_change_no_score() -> None:
    features, people = drawn(covariance(5, 1.0, 14), covariance(5, 1.0, 15), torch.randint(1, 5, (60,)), 16)
    rotation = torch.linalg.qr(torch.randn(5, 5).double())[0]
    moved = features @ rotation - 5
    scores = fit_joint_bayesian(features, people).comparable(features).matrix(EVERYTHING, EVERYTHING)
    again = fit_joint_bayesian(moved, people).comparable(moved).matrix(EVERYTHING, EVERYTHING)
    torch.testing.assert_close(again, scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "people"),
    [
        (torch.randn(12, 4), torch.arange(12)),  # one image of each
        (torch.randn(12, 4), torch.zeros(12, dtype=torch.int64)),  # one person
        (torch.randn(3, 20), torch.tensor([0, 0, 1])),  # fewer images than values
        (torch.randn(6, 4)[[0, 0, 1, 1, 2, 2]], torch.tensor([0, 0, 1, 1, 2, 2])),  # no variance within people
        (torch.randn(12, 2) @ torch.randn(2, 6), torch.arange(12) // 3),  # directions without variance
        (torch.full((8, 3), 0.1), torch.arange(8) // 2),  # no variance at all
        (torch.randn(12, 4) * 1e-12, torch.arange(12) // 3),
        (torch.randn(12, 4) * 1e12, torch.arange(12) // 3),
        (torch.randn(4, 2), torch.tensor([90, 90, 7, 7])),  # numbers with gaps
        (torch.randn(5, 0), torch.tensor([0, 0, 1, 1, 2])),  # nothing left by PCA
    ],
)
def test_nothing_to_learn_from_is_no_reason_to_fail(features: Tensor, people: Tensor) -> None:
    model = fit_joint_bayesian(features, people)
    scores = model.comparable(features).matrix(EVERYTHING, EVERYTHING)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores, scores.T)
    for matrix in (model.between, model.within):
        assert matrix.numel() == 0 or float(torch.linalg.eigvalsh(matrix).min()) >= -1e-12 * float(matrix.norm())


def test_the_number_of_images_of_a_person_may_be_any() -> None:
    counts = torch.tensor([1, 500, 2, 30] * 5)
    model = fit_joint_bayesian(*drawn(covariance(3, 1.0, 17), covariance(3, 1.0, 18), counts, 19))
    assert math.isfinite(float(model.between.norm()))
    assert float((model.within - covariance(3, 1.0, 18)).norm() / covariance(3, 1.0, 18).norm()) < 0.1
