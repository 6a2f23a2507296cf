import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.network import Network, NetworkSettings
from prunekit_deepid2plus.signals import SupervisedNetwork, identification, verification
from torch import Tensor

TINY = NetworkSettings(width=1 / 16, feature=8, input_size=(28, 24))


def verification_by_loops(features: Tensor, people: Tensor, margin: float) -> Tensor:
    costs = []
    for i in range(len(people)):
        for j in range(i):
            distance = (features[i] - features[j]).norm()
            same = people[i] == people[j]
            costs.append(distance**2 / 2 if same else (margin - distance).clamp(min=0) ** 2 / 2)
    return torch.stack(costs).mean()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), samples=st.integers(2, 9), margin=st.floats(0, 8))
def test_verification_is_the_mean_over_all_pairs_and_so_is_its_gradient(seed: int, samples: int, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 6, generator=generator, requires_grad=True)
    people = torch.randint(3, (samples,), generator=generator)
    exact = features.detach().double().requires_grad_()
    found, expected = verification(features, people, margin), verification_by_loops(exact, people, margin)
    found.backward()
    expected.backward()
    assert features.grad is not None
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.grad.double(), exact.grad, atol=1e-4, rtol=1e-3)


def test_two_equal_features_of_two_people_give_a_finite_gradient() -> None:
    features = torch.zeros(2, 4, requires_grad=True)
    loss = verification(features, torch.tensor([0, 1]), 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(4.5, rel=1e-5)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_verification_is_exact_under_bf16_autocast() -> None:
    features, people = torch.randn(20, 16) + 30, torch.arange(20) // 2
    with torch.autocast("cpu", torch.bfloat16):
        found = verification(features, people, 8.0)
    torch.testing.assert_close(found, verification_by_loops(features.double(), people, 8.0).float(), rtol=1e-3, atol=0)


def test_identification_is_the_mean_surprise_about_the_person() -> None:
    scores, people = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    surprises = []
    for row, person in zip(scores.double(), people, strict=True):
        total = sum(math.exp(float(value)) for value in row)
        surprises.append(-math.log(math.exp(float(row[person])) / total))
    assert float(identification(scores, people)) == pytest.approx(sum(surprises) / 5, rel=1e-5)


def test_every_supervised_stage_has_a_feature_and_class_scores_of_its_own() -> None:
    model = SupervisedNetwork(Network(TINY), people=7, auxiliary=["3", "4"])
    outputs = model(torch.randn(5, 3, 28, 24))
    assert [(feature.shape, scores.shape) for feature, scores in outputs] == [((5, 8), (5, 7))] * 3
    assert not any(name.startswith(("features", "classifiers")) for name in model.network.state_dict())


def test_dropout_hides_values_from_identification_only() -> None:
    model = SupervisedNetwork(Network(TINY), people=7, dropout=0.5)
    images = torch.randn(5, 3, 28, 24)
    (first, first_scores), (second, second_scores) = model(images)[0], model(images)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first_scores, second_scores)
