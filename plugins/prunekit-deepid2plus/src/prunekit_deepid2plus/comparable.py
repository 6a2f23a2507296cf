"""Faces in comparable form: the score of two faces is a product of vectors plus one term of each.

Cosine and Joint Bayesian both take this form, so pairs and whole matrices of scores are computed one way. This
module must not know people or networks.
"""

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen(eq=False)
class Comparable:
    """Faces of which any two have the score ``vectors[i] @ vectors[j] + own[i] + own[j]``.

    In float64, which autocast leaves alone: in bf16 most scores would tie.

    Attributes:
        vectors: float64 ``[images, values]``.
        own: what a face adds to each of its scores, float64 ``[images]``.
    """

    vectors: Tensor
    own: Tensor

    def __len__(self) -> int:
        return len(self.own)

    def take(self, chosen: Tensor) -> "Comparable":
        """Return the chosen images (numbers)."""
        return Comparable(self.vectors[chosen], self.own[chosen])

    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the scores of pairs of images, float64 ``[pairs]``."""
        return (self.vectors[first] * self.vectors[second]).sum(1) + self.own[first] + self.own[second]

    def matrix(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores of some images with some images, float64 ``[rows, columns]``."""
        products = torch.addmm(self.own[columns], self.vectors[rows], self.vectors[columns].T)
        return products.add_(self.own[rows, None])


def cosine(features: Tensor) -> Comparable:
    """Compare by the cosine of features ``[images, values]``; that of a feature of zeros is 0."""
    vectors = nn.functional.normalize(features.double())
    return Comparable(vectors, vectors.new_zeros(len(vectors)))
