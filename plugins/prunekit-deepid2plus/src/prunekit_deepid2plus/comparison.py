"""How faces are compared: cosine, or Joint Bayesian after PCA, fitted on people who are not tested.

This module must not know test data: what it fits it is given.
"""

from collections.abc import Callable

from torch import Tensor

from prunekit.errors import TrainingError
from prunekit_deepid2plus.comparable import Comparable
from prunekit_deepid2plus.joint_bayesian import fit_joint_bayesian
from prunekit_deepid2plus.pca import fit_components

Comparison = Callable[[Tensor], Comparable]
"""From features ``[images, values]`` to faces that can be compared."""


def joint_bayesian(features: Tensor, people: Tensor, components: int = 0) -> Comparison:
    """Fit whitened PCA, then Joint Bayesian, on the features of training people.

    Args:
        features: ``[images, values]``.
        people: person numbers ``[images]``.
        components: most principal components; 0: all that vary.

    Raises:
        TrainingError: when features are not finite.
    """
    if not features.isfinite().all():
        raise TrainingError(
            "features of the training people are not finite, so no comparison can be fitted to them; "
            "lower task.learning_rate"
        )
    space = fit_components(features, components, whiten=True)
    model = fit_joint_bayesian(space.project(features), people)
    return lambda tested: model.comparable(space.project(tested))
