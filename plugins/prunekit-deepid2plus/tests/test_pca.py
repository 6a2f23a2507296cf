import pytest
import torch
from prunekit_deepid2plus.pca import fit_components


def test_components_are_orthonormal_and_their_variances_fall() -> None:
    features = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([1, 9, 2, 0.1, 5, 3]) + 7
    space = fit_components(features)
    values = space.project(features)
    torch.testing.assert_close(space.directions.T @ space.directions, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(values.mean(0), torch.zeros(6, dtype=torch.float64))
    covariance = values.T @ values / 50
    variances = torch.linalg.svdvals(features - features.mean(0)).square() / 50
    torch.testing.assert_close(covariance, variances.diag())


def test_whitened_components_have_variance_1_and_are_the_first() -> None:
    features = torch.randn(40, 5)
    space = fit_components(features, 3, whiten=True)
    values = space.project(features)
    torch.testing.assert_close(values.T @ values / 40, torch.eye(3, dtype=torch.float64))
    whole = fit_components(features)
    torch.testing.assert_close(space.directions / space.directions.norm(dim=0), whole.directions[:, :3])


@pytest.mark.parametrize("whiten", [False, True])
def test_directions_without_variance_are_left_out(whiten: bool) -> None:
    exact = torch.randint(-9, 9, (30, 2)).double() @ torch.randint(-3, 3, (2, 6)).double() + 1000
    assert fit_components(exact, whiten=whiten).directions.shape == (6, 2)
    few = torch.randn(3, 8)
    assert fit_components(few, whiten=whiten).directions.shape == (8, 2)


def test_features_that_never_vary_have_no_components() -> None:
    for constant in (0.0, 0.1, -1e6):
        features = torch.full((7, 4), constant)
        assert fit_components(features, whiten=True).project(features).shape == (7, 0)
