import pytest
import torch
from torch import nn

from prunekit.contracts import sums as summing
from prunekit.contracts.criterion import Observation
from prunekit.contracts.sums import batch_gradient, total, unfolded
from prunekit.errors import DataError
from prunekit.layers.torch_views import core_view


@pytest.mark.parametrize("size", [1, 5000, 2**26])
def test_inputs_are_unfolded_once_for_any_memory_limit(size, monkeypatch):
    monkeypatch.setattr(summing, "_BYTES", size)
    view = core_view(nn.Conv2d(4, 4, 3, padding=1, groups=2))
    inputs = torch.randn(3, 4, 5, 6)
    pieces = list(unfolded(view, inputs))
    assert len(pieces) == {1: 30, 5000: 6, 2**26: 1}[size]
    whole = view.inputs_at(inputs, slice(None)).double().flatten(1, 2)
    assert torch.equal(torch.cat(pieces, 1), whole)


def test_infinite_inputs_are_refused():
    with pytest.raises(DataError, match="inputs of a layer contain NaN or infinite values"):
        list(unfolded(core_view(nn.Linear(3, 2)), torch.tensor([[1.0, torch.inf, 0.0]])))


def seen(layer, gradient, call=0):
    inputs = torch.ones(1, 3)
    return Observation(layer, inputs, inputs, inputs, weight_gradient=gradient, call=call)


def test_the_gradient_of_a_module_called_twice_in_a_batch_counts_once():
    layer, gradient = core_view(nn.Linear(3, 2)), torch.ones(1, 2, 3)
    assert torch.equal(batch_gradient(seen(layer, gradient)), gradient.double())
    assert batch_gradient(seen(layer, gradient, call=1)) is None
    assert batch_gradient(seen(layer, None)) is None


def test_a_frozen_weight_and_a_nan_gradient_are_refused():
    frozen = core_view(nn.Linear(3, 2).requires_grad_(requires_grad=False))
    with pytest.raises(DataError, match="does not require a gradient"):
        batch_gradient(seen(frozen, None))
    with pytest.raises(DataError, match="gradients of the weight of a layer contain NaN or infinite values"):
        batch_gradient(seen(core_view(nn.Linear(3, 2)), torch.full((1, 2, 3), torch.nan)))


def test_sums_of_nothing_are_refused():
    with pytest.raises(DataError, match="criterion 'snip' observed no gradients"):
        total(None, "snip", "gradients")
