"""Principal component analysis: the directions in which features vary, most first (float64, exact).

This module must not know people or faces.
"""

import attrs
import torch
from torch import Tensor

LEAST_SHARE = 1e-8
"""Least variance of a component, as a share of the greatest; below it float32 features hold little but rounding."""


@attrs.frozen(eq=False)
class PrincipalComponents:
    """A projection on principal components.

    Attributes:
        mean: float64 ``[values]``.
        directions: one column a component, float64 ``[values, components]``; orthonormal, or scaled to give variance 1.
    """

    mean: Tensor
    directions: Tensor

    def project(self, features: Tensor) -> Tensor:
        """Return the components of features ``[samples, values]``, float64 ``[samples, components]``."""
        return (features.double() - self.mean) @ self.directions


def fit_components(features: Tensor, most: int = 0, *, whiten: bool = False) -> PrincipalComponents:
    """Find the principal components of features.

    Args:
        features: ``[samples, values]``, finite.
        most: most components wanted; 0: all. Directions without variance are never among them, so there may be fewer,
            even none.
        whiten: scale the components to variance 1 over the features (divided by samples, not samples - 1).
    """
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances, directions = variances.flip(0), directions.flip(1)
    # The sum's rounding, where no feature varies at all, is not taken for variance.
    least = max(float(variances[0]) * LEAST_SHARE, float(mean.square().max()) * torch.finfo(torch.float64).eps)
    kept = slice(0, min(most or len(variances), int((variances > least).sum())))
    scale = variances[kept].rsqrt() if whiten else 1.0
    return PrincipalComponents(mean, directions[:, kept] * scale)
