import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit.criteria.grasp import Grasp
from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers


def reference(model, batches, masks=None):
    """w * (H g) with the Hessian of all prunable weights written out, one row after another."""
    layers = find_layers(model)
    weights = [view.weight for view in layers.values()]
    loss = sum(cross_entropy(model(images), labels) for images, labels in batches)
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, create_graph=True)])
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(entry, weights, retain_graph=True)]) for entry in flat
    ]
    there = torch.ones_like(flat) if masks is None else torch.cat([masks[name].flatten() for name in layers])
    product = torch.stack(rows) @ (flat.detach() * there)
    scores = torch.cat([weight.detach().flatten() for weight in weights]) * product
    parts = scores.split([weight.numel() for weight in weights])
    return {name: view.to_matrix(part) for (name, view), part in zip(layers.items(), parts, strict=True)}


@pytest.mark.thorough
def test_scores_are_weight_times_hessian_times_gradient(mixed_network, labelled_batches, scores_of):
    scores, expected = scores_of(Grasp, mixed_network, labelled_batches), reference(mixed_network, labelled_batches)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-15)
    assert all(parameter.grad is None for parameter in mixed_network.parameters())


@pytest.mark.thorough
def test_dropped_weights_do_not_contribute_to_the_gradient(mixed_network, labelled_batches, scores_of):
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for name, view in find_layers(mixed_network).items():
        masks[name] = torch.rand(view.weight.shape, generator=generator) < 0.5
        with torch.no_grad():
            view.weight.mul_(masks[name])
    scores = scores_of(Grasp, mixed_network, labelled_batches, masks=masks)
    expected = reference(mixed_network, labelled_batches, masks)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-15)


def test_a_score_is_minus_half_the_change_of_the_gradients_squared_norm(scores_of):
    """To first order, for a small part of the weight: so the sign is right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = (torch.randn(30, 6, dtype=torch.float64), torch.randint(3, (30,)))
    scores, part = scores_of(Grasp, model, [batch]), 1e-6

    def squared_norm():
        gradients = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), [model[0].weight, model[2].weight])
        return sum(gradient.square().sum() for gradient in gradients)

    before = squared_norm()
    for row, column in ((0, 0), (1, 3), (4, 5)):
        with torch.no_grad():
            kept = model[0].weight[row, column].clone()
            model[0].weight[row, column] = kept * (1 - part)
            change = (squared_norm_of(squared_norm) - before) / part
            model[0].weight[row, column] = kept
        torch.testing.assert_close(change, -2 * scores["0"][0, row, column], rtol=1e-4, atol=1e-9)


def squared_norm_of(function):
    with torch.enable_grad():
        return function()


def test_the_order_of_batches_does_not_matter(mixed_network, labelled_batches, scores_of):
    scores = scores_of(Grasp, mixed_network, labelled_batches)
    for name, score in scores_of(Grasp, mixed_network, labelled_batches[::-1]).items():
        torch.testing.assert_close(score, scores[name], rtol=1e-6, atol=1e-15)


def test_a_loss_linear_in_the_weights_has_no_second_derivative(scores_of):
    scores = scores_of(Grasp, nn.Linear(3, 2), [torch.ones(4, 3)], loss=lambda model, batch: model(batch).sum())
    assert not scores[""].any()


def test_attention_has_a_second_derivative(scores_of):
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.last = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, tokens):
            query, key, value = self.project(tokens).unsqueeze(1).chunk(3, dim=-1)
            return self.last(nn.functional.scaled_dot_product_attention(query, key, value).squeeze(1).mean(1))

    model = Attending().double()
    batches = [(torch.randn(4, 5, 8, dtype=torch.float64), torch.randint(3, (4,)))]
    scores = scores_of(Grasp, model, batches)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected = reference(model, batches)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model: model[2].weight.requires_grad_(requires_grad=False), "layer '2' does not require a gradient"),
        (lambda model: model.append(nn.Linear(3, 3)), "no loss depends on layer '8'"),
    ],
)
def test_a_layer_without_a_gradient_is_named(spoil, words, mixed_network, labelled_batches, scores_of):
    spoil(mixed_network)

    def loss(model, batch):
        return cross_entropy(model[:8](batch[0]), batch[1])

    with pytest.raises(ConfigError, match=words):
        scores_of(Grasp, mixed_network, labelled_batches, loss=loss)
