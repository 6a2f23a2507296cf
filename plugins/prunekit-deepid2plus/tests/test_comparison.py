import pytest
import torch
from prunekit_deepid2plus.comparison import joint_bayesian

from prunekit.errors import TrainingError

EVERYTHING = slice(None)


def test_the_scale_of_a_feature_value_does_not_matter() -> None:
    people = torch.arange(90) // 3
    features = torch.randn(30, 4).double()[people] + torch.randn(90, 4)
    scales = torch.tensor([1, 100, 0.1, 5])
    scores = joint_bayesian(features, people)(features).matrix(EVERYTHING, EVERYTHING)
    scaled = joint_bayesian(features * scales, people)(features * scales).matrix(EVERYTHING, EVERYTHING)
    torch.testing.assert_close(scaled, scores, rtol=1e-5, atol=1e-5)


def test_values_that_never_vary_do_not_matter_and_components_can_be_few() -> None:
    people = torch.arange(30) // 3
    features = torch.randn(30, 4)
    dead = torch.cat([features, torch.ones(30, 3)], 1)
    assert joint_bayesian(dead, people)(dead).vectors.shape == (30, 4)
    assert joint_bayesian(dead, people, 2)(dead).vectors.shape == (30, 2)
    assert not joint_bayesian(dead * 0, people)(dead).matrix(EVERYTHING, EVERYTHING).any()


def test_features_that_are_no_numbers_are_refused() -> None:
    features = torch.randn(6, 2)
    features[1, 1] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        joint_bayesian(features, torch.arange(6) // 2)
