"""Joint Bayesian (Chen, Cao, Wang, Wen, Sun, "Bayesian Face Revisited: A Joint Formulation", ECCV 2012).

A face is a person plus a deviation, x = mu + epsilon, both Gaussian. Fitted by expectation-maximisation; two faces are
compared by how much likelier they are as one person than as two. In the basis in which both covariances are diagonal
(one generalised eigenproblem an iteration) every person is one line, however many images there are. All in float64.
This module must not know images, networks or test data.
"""

import attrs
import torch
from torch import Tensor

from prunekit_deepid2plus.comparable import Comparable

ITERATIONS = 100
TOLERANCE = 1e-3
"""Relative change of both covariances at which fitting ends."""

FLOOR = 1e-6
"""Variance within people that every direction has at least, as a share of the mean variance; keeps it invertible."""


@attrs.frozen(eq=False)
class JointBayesian:
    """A fitted model.

    Attributes:
        mean: what is subtracted from features, float64 ``[values]``.
        between: covariance of mu, from person to person, ``[values, values]``; S_mu in the paper.
        within: covariance of epsilon, from image to image of a person; S_epsilon in the paper; positive definite.
    """

    mean: Tensor
    between: Tensor
    within: Tensor

    def comparable(self, features: Tensor) -> Comparable:
        """Return faces ``[images, values]`` so that their score is the log likelihood ratio of equation (4).

        That is r = x1' A x1 + x2' A x2 - 2 x1' G x2: twice the logarithm, without its constant, as in the paper.
        """
        variances, basis, _ = _diagonal(self.between, self.within)
        values = (features.double() - self.mean) @ basis
        # (5) and (6) where within = 1 and between = s: G = -s / (2s + 1) and A = 1 / (s + 1) - (s + 1) / (2s + 1).
        of_pairs = 2 * variances / (2 * variances + 1)
        of_each = -(variances.square()) / ((variances + 1) * (2 * variances + 1))
        return Comparable(values * of_pairs.sqrt(), values.square() @ of_each)


@attrs.frozen(eq=False)
class _Statistics:
    """All that fitting needs of the features, which are centred.

    Attributes:
        counts: images of each person, float64 ``[people, 1]``.
        means: of each person ``[people, values]``.
        scatter: sum over images of (x - person's mean) (x - person's mean)' ``[values, values]``.
        floor: added to the variance within people in every direction.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor
    floor: Tensor


def fit_joint_bayesian(
    features: Tensor, people: Tensor, iterations: int = ITERATIONS, tolerance: float = TOLERANCE
) -> JointBayesian:
    """Fit the model to people of any numbers of images.

    Expectation-maximisation of the likelihood: the covariance that a person's mu still has, given the images, is
    counted. The paper's M-step leaves it out, which would not recover the covariances that data were drawn with.
    Where everybody has one image the two covariances cannot be told apart, and stay in proportion.

    Args:
        features: ``[images, values]``, finite.
        people: person numbers ``[images]``.
        iterations: most iterations.
        tolerance: relative change of both covariances at which to end sooner.
    """
    features = features.double()
    mean = features.mean(0)
    statistics = _statistics(features - mean, torch.unique(people, return_inverse=True)[1])
    between, within = _first_guess(statistics)
    for _ in range(iterations):
        before = between, within
        between, within = _improved(between, within, statistics)
        changes = [(new - old).norm() / new.norm() for new, old in zip((between, within), before, strict=True)]
        if not max(changes) > tolerance:  # also ends when there is no variance at all, 0 / 0
            break
    return JointBayesian(mean, between, within)


def _statistics(centred: Tensor, people: Tensor) -> _Statistics:
    counts = people.bincount().double()[:, None]
    means = centred.new_zeros(len(counts), centred.shape[1]).index_add_(0, people, centred) / counts
    rest = centred - means[people]
    floor = centred.square().mean() * FLOOR if centred.any() else centred.new_tensor(FLOOR)
    return _Statistics(counts, means, rest.T @ rest, floor)


def _first_guess(statistics: _Statistics) -> tuple[Tensor, Tensor]:
    """Return covariances to begin with: that of people's means, and that of images about them."""
    between = statistics.means.T @ statistics.means / len(statistics.means)
    spare = float((statistics.counts - 1).sum())
    within = statistics.scatter / spare if spare else between
    return between, _raised(within, statistics.floor)


def _raised(within: Tensor, floor: Tensor) -> Tensor:
    return within + floor * torch.eye(len(within), dtype=within.dtype)


def _diagonal(between: Tensor, within: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return variances s, a basis W and its inverse, so that W' within W = 1 and W' between W = diag(s)."""
    root = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(root, between, upper=False)
    relative = torch.linalg.solve_triangular(root, half.T, upper=False)
    variances, rotation = torch.linalg.eigh((relative + relative.T) / 2)
    basis = torch.linalg.solve_triangular(root.T, rotation, upper=True)
    return variances.clamp_min(0), basis, rotation.T @ root.T


def _expected(variances: Tensor, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each person's mu given the images, in the diagonal basis ``[people, values]``.

    Equation (7) in that basis: the person's mean, shrunk by the share of its variance that is mu's.
    """
    left = variances / (1 + counts * variances)
    return counts * left * means, left


def _improved(between: Tensor, within: Tensor, statistics: _Statistics) -> tuple[Tensor, Tensor]:
    """Return both covariances after one iteration."""
    variances, basis, inverse = _diagonal(between, within)
    counts, means = statistics.counts, statistics.means @ basis
    expected, left = _expected(variances, means, counts)
    rest = (means - expected) * counts.sqrt()
    of_people = expected.T @ expected + left.sum(0).diag()
    of_images = rest.T @ rest + (counts * left).sum(0).diag()
    within = (statistics.scatter + inverse.T @ of_images @ inverse) / counts.sum()
    return inverse.T @ of_people @ inverse / len(counts), _raised(within, statistics.floor)
