"""Tests of the criterion: its contract with prunekit.testing, and its formula on one example."""

import torch
from activation_weighted import ActivationWeighted
from torch import nn

from prunekit import Observation
from prunekit.layers.torch_views import LinearView
from prunekit.testing import check_criterion


def test_it_keeps_its_contract() -> None:
    """It scores convolutions, grouped convolutions and linear layers, with dead neurons, reproducibly."""
    check_criterion(ActivationWeighted)
    check_criterion(ActivationWeighted, power=1.0)


def test_a_score_is_the_weight_times_the_size_of_its_inputs() -> None:
    """Two samples, two inputs: the sums of |input| are 4 and 2."""
    layer = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    criterion = ActivationWeighted(power=1.0)
    criterion.observe(Observation(LinearView(layer), inputs, layer(inputs), layer(inputs)))
    scores = criterion.score(torch.tensor([[[0.5, -4.0]]]), torch.Generator())
    torch.testing.assert_close(scores, torch.tensor([[[2.0, 8.0]]]))
