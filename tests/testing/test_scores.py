import pytest
import torch
from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.criteria.magnitude import Magnitude
from prunekit.criteria.movement import Movement
from prunekit.criteria.snip import Snip
from prunekit.criteria.synflow import SynFlow
from prunekit.criteria.wanda import Wanda
from prunekit.errors import ConfigError, PluginError
from prunekit.layers.lookup import find_layers
from prunekit.testing import ToyNetwork, ToyTask, scores_of

BATCHES = list(ToyTask().batches("train", 0, Seeds(0)))


def test_scores_are_matrices_of_groups_outputs_and_fan_for_every_layer():
    model = ToyNetwork()
    scores = scores_of(Magnitude, model)
    assert {name: tuple(score.shape) for name, score in scores.items()} == {
        "conv_a": (1, 8, 9),
        "conv_b": (2, 4, 36),
        "hidden": (1, 16, 72),
        "classifier": (1, 4, 16),
    }
    for name, view in find_layers(model).items():
        assert torch.equal(view.from_matrix(scores[name]), view.weight.detach().abs())


def test_a_criterion_observes_the_first_entries_of_batches_or_what_forward_runs():
    model = nn.Sequential(nn.Linear(3, 2))
    inputs = torch.randn(8, 3)
    scores = scores_of(Wanda, model, [(inputs, "labels")])
    expected = model[0].weight.detach().double().abs() * inputs.double().norm(dim=0)
    torch.testing.assert_close(scores["0"][0], expected, rtol=1e-5, atol=0)
    doubled = scores_of(Wanda, model, [inputs], forward=lambda model, batch: model(2 * batch))
    torch.testing.assert_close(doubled["0"], 2 * scores["0"], rtol=1e-5, atol=0)


def test_the_model_its_mode_and_its_gradients_are_left_unchanged():
    task, model = ToyTask(), ToyNetwork().train()
    model.hidden.eval()
    task.loss(model, BATCHES[0]).backward()
    before = {name: (tensor, tensor.clone(), tensor.grad) for name, tensor in model.named_parameters()}
    scores_of(Snip, model, BATCHES[:2], loss=task.loss)
    assert [module.training for module in (model, model.conv_a, model.hidden)] == [True, True, False]
    for name, tensor in model.named_parameters():
        same, values, gradient = before[name]
        assert tensor is same
        assert torch.equal(tensor, values)
        assert tensor.grad is gradient


def test_a_criterion_of_the_whole_network_sees_the_current_masks():
    seen = []

    class Looking(SynFlow):
        def survey(self, scene):
            seen.append(dict(scene.masks))
            return super().survey(scene)

    mask = torch.rand(16, 72) < 0.5
    scores_of(Looking, ToyNetwork(), BATCHES[:1], masks={"hidden": mask})
    assert torch.equal(seen[0]["hidden"][0], mask)


class Nothing(Magnitude):
    def score(self, weight, generator):
        return weight * torch.nan


@pytest.mark.parametrize(
    ("criterion", "error", "sentence"),
    [
        (Wanda, ConfigError, "criterion 'wanda' needs activations: give it batches to observe"),
        (Snip, ConfigError, "needs gradients: give it a loss and training batches"),
        (Movement, ConfigError, "ranks by training steps, but no training is observed here"),
        (Nothing, PluginError, "gave NaN scores for layer 'conv_a'"),
    ],
)
def test_missing_evidence_and_unusable_scores_are_errors(criterion, error, sentence):
    with pytest.raises(error, match=sentence):
        scores_of(criterion, ToyNetwork())
