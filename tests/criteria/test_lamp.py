import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.criteria.lamp import Lamp


def reference(weight):
    """The published formula, one weight at a time; among equal magnitudes the order of the places counts."""
    flat = weight.double().flatten().tolist()
    order = sorted(range(len(flat)), key=lambda place: (abs(flat[place]), place))
    scores = [0.0] * len(flat)
    for rank, place in enumerate(order):
        rest = sum(flat[other] ** 2 for other in order[rank:])
        scores[place] = flat[place] ** 2 / rest if flat[place] else 0.0
    return torch.tensor(scores, dtype=torch.float64).reshape(weight.shape)


@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0, 3.0, 1e-20]), min_size=1, max_size=24), st.booleans())
def test_scores_match_the_paper_even_for_ties_and_zeros(values, grouped):
    weight = torch.tensor(values).reshape((2, 1, -1) if grouped and len(values) % 2 == 0 else (1, 1, -1))
    torch.testing.assert_close(Lamp().score(weight, torch.Generator()), reference(weight), rtol=1e-12, atol=0)


def test_the_largest_weight_scores_one_and_the_ranking_is_that_of_magnitude():
    weight = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    scores = Lamp().score(weight, torch.Generator())
    assert scores.max() == 1
    assert torch.equal(scores.flatten().argsort(), weight.abs().flatten().argsort())


def test_a_layer_of_zeros_scores_zero():
    assert not Lamp().score(torch.zeros(1, 2, 3), torch.Generator()).any()
