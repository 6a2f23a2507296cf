from contextlib import nullcontext

import pytest
import torch
from torch import nn

import prunekit
from prunekit.criteria.synflow import SynFlow
from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers


def reference(model, image):
    """|w| dR / d|w| by the change of R, which is linear in each weight, when the weight is removed."""
    scores = {}
    with torch.no_grad():
        absolute = {name: parameter.double().abs() for name, parameter in model.named_parameters()}

        def flow(state):
            return torch.func.functional_call(model, state, (torch.ones_like(image[:1]).double(),)).sum()

        before = flow(absolute)
        for name, view in find_layers(model).items():
            key = f"{name}.weight"
            changes = torch.zeros(view.weight.numel(), dtype=torch.float64)
            for place in range(view.weight.numel()):
                without = absolute[key].clone()
                without.view(-1)[place] = 0
                changes[place] = before - flow(absolute | {key: without})
            scores[name] = view.to_matrix(changes)
    return scores


@pytest.fixture
def rectified(mixed_network):
    """Return a network whose flow is linear in each weight."""
    mixed_network[6] = nn.ReLU()
    return mixed_network.float()


def test_scores_match_the_flow_of_ones_through_absolute_weights(rectified, scores_of):
    images = torch.randn(3, 2, 6, 6)
    scores, expected = scores_of(SynFlow, rectified, [(images, torch.zeros(3))]), reference(rectified, images)
    for name, score in scores.items():
        assert score.dtype == torch.float64
        torch.testing.assert_close(score, expected[name], rtol=1e-8, atol=1e-12)


def test_the_flow_into_a_unit_is_the_flow_out_of_it_without_biases(scores_of):
    """The conservation law of the paper."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    scores = scores_of(SynFlow, model, [torch.randn(4, 6)])
    torch.testing.assert_close(scores["0"][0].sum(1), scores["2"][0].sum(0), rtol=1e-12, atol=0)


def test_scores_do_not_depend_on_the_data(rectified, scores_of):
    scores = scores_of(SynFlow, rectified, [torch.randn(3, 2, 6, 6)])
    for name, score in scores_of(SynFlow, rectified, [torch.full((1, 2, 6, 6), 7.0)]).items():
        assert torch.equal(score, scores[name])


class Restless(nn.Module):
    """Counts its calls in a buffer, normalises, and fails on demand."""

    def __init__(self, *, fails):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fails = fails

    def forward(self, inputs):
        self.calls += 1
        hidden = self.norm(self.first(inputs))
        if self.fails:
            raise RuntimeError("no more")
        return {"scores": self.last(hidden), "count": self.calls}


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_unchanged_to_the_bit_even_after_an_error(fails):
    torch.manual_seed(0)
    model = Restless(fails=fails).train()
    model.norm.running_mean.normal_()
    model.first.weight.grad = torch.ones(3, 4)
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    with pytest.raises(RuntimeError, match="no more") if fails else nullcontext():
        prunekit.select(model, "synflow", density=0.5, batches=[torch.randn(4, 4)])
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert model.training
    assert torch.equal(model.first.weight.grad, torch.ones(3, 4))


def test_dropped_connections_and_those_that_depend_only_on_them_score_zero(scores_of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
    scores = scores_of(SynFlow, model, [torch.randn(2, 4)])
    assert not scores["0"][0, 1].any()
    assert not scores["2"][0, :, 1].any()
    assert scores["0"][0, [0, 2]].all()


def test_a_layer_without_influence_on_the_output_is_named(scores_of):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, inputs):
            return self.used(inputs)

    with pytest.raises(ConfigError, match="does not depend on layer 'unused'"):
        scores_of(SynFlow, Aside(), [torch.ones(1, 2)])


def test_without_batches_the_error_says_what_to_provide():
    with pytest.raises(ConfigError, match="criterion 'synflow' looks at the whole network: give it batches"):
        prunekit.select(nn.Linear(2, 2), "synflow", density=0.5)
