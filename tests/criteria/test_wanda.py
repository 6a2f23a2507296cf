import pytest
import torch
from torch import nn

from prunekit.criteria.wanda import Wanda
from prunekit.errors import DataError
from prunekit.layers.lookup import find_layers


def reference(view, inputs):
    """|w| times the norm of its inputs, one connection at a time."""
    unfolded = view.inputs_at(inputs, slice(None)).double()  # [G, M, samples, fan]
    weight = view.to_matrix(view.weight.detach())
    scores = torch.zeros_like(weight, dtype=torch.float64)
    for g, i, k in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        norm = sum(float(value) ** 2 for value in unfolded[g, :, :, k].flatten()) ** 0.5
        scores[g, i, k] = weight[g, i, k].abs() * norm
    return scores


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (5,)),
        (nn.Linear(5, 4), (3, 5)),
        (nn.Conv2d(2, 3, 2, padding=1), (2, 4, 3)),
        (nn.Conv2d(4, 6, 2, stride=2, groups=2), (4, 4, 4)),
    ],
)
def test_scores_match_the_paper_in_any_order_of_batches(layer, shape, scores_of):
    model = nn.Sequential(layer).double()
    inputs = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batches = list(inputs.split([4, 2, 3]))
    scores = scores_of(Wanda, model, batches)["0"]
    torch.testing.assert_close(scores, reference(find_layers(model)["0"], inputs), rtol=1e-12, atol=0)
    torch.testing.assert_close(scores_of(Wanda, model, batches[::-1])["0"], scores, rtol=1e-6, atol=0)


def test_weights_of_an_input_that_is_always_zero_are_dropped_first(scores_of):
    inputs = torch.ones(4, 3)
    inputs[:, 1] = 0
    scores = scores_of(Wanda, nn.Sequential(nn.Linear(3, 2)), [inputs])["0"]
    assert not scores[..., 1].any()
    assert scores[..., [0, 2]].all()


def test_without_batches_it_raises_an_error(scores_of):
    with pytest.raises(DataError, match="criterion 'wanda' observed no data"):
        scores_of(Wanda, nn.Sequential(nn.Linear(3, 2)), [])
