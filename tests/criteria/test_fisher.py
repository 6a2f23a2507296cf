import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit import testing
from prunekit.criteria import fisher
from prunekit.criteria.fisher import Fisher
from prunekit.layers.lookup import find_layers


def reference(model, batches):
    """F w^2 / 2 with F the mean of the squared gradients of single samples, one sample after another."""
    layers = find_layers(model)
    sums = {name: torch.zeros_like(view.weight) for name, view in layers.items()}
    samples = [(image, label) for images, labels in batches for image, label in zip(images, labels, strict=True)]
    for image, label in samples:
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        for name, view in layers.items():
            sums[name] += view.weight.grad**2
    model.zero_grad()
    # Divided by the number of samples once for the mean, once more as the criterion says it does.
    return {
        name: view.to_matrix(sums[name] / len(samples) ** 2 * view.weight.detach() ** 2 / 2)
        for name, view in layers.items()
    }


@pytest.mark.parametrize("size", [1, 3000, 2**26])
def test_scores_match_single_samples_for_any_memory_limit(
    size, mixed_network, labelled_batches, scores_of, monkeypatch
):
    monkeypatch.setattr(fisher, "_BYTES", size)
    scores, expected = scores_of(Fisher, mixed_network, labelled_batches), reference(mixed_network, labelled_batches)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-10, atol=1e-20)


@settings(deadline=None, max_examples=10)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_the_split_into_batches_and_their_order_do_not_matter(sizes, data):
    # What hypothesis repeats takes no function-scoped fixtures.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images, labels = torch.randn(sum(sizes), 4, dtype=torch.float64), torch.randint(3, (sum(sizes),))
    batches = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    found = testing.scores_of(Fisher, model, data.draw(st.permutations(batches)), loss=cross_entropy_of)
    for name, score in found.items():
        torch.testing.assert_close(score, reference(model, [(images, labels)])[name], rtol=1e-6, atol=1e-20)


def cross_entropy_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class Tokens(nn.Module):
    """Classifies a sequence of tokens by the mean output of a linear layer over the tokens."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.last(self.first(tokens).tanh().mean(1))


def test_the_gradients_of_a_samples_tokens_are_summed_before_they_are_squared(scores_of):
    torch.manual_seed(0)
    model = Tokens().double()
    batches = [(torch.randn(n, 6, 4, dtype=torch.float64), torch.randint(3, (n,))) for n in (5, 2)]
    expected = reference(model, batches)
    for name, score in scores_of(Fisher, model, batches).items():
        torch.testing.assert_close(score, expected[name], rtol=1e-10, atol=1e-20)


class Windows(nn.Module):
    """As tokens, each a sample of the linear layer's batch: what windowed attention does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, images):
        return self.last(self.first(images.flatten(0, 1)).tanh().unflatten(0, images.shape[:2]).mean(1))


def test_a_layer_that_sees_pieces_of_samples_has_the_same_scale_as_others(scores_of):
    torch.manual_seed(0)
    model = Windows().double()
    batches = [(torch.randn(5, 1, 4, dtype=torch.float64).expand(5, 6, 4), torch.randint(3, (5,)))]
    whole, pieces = reference(model, batches), scores_of(Fisher, model, batches)
    torch.testing.assert_close(pieces["last"], whole["last"], rtol=1e-10, atol=0)
    # Six equal pieces: the square of their sum is 36 times, the sum of their squares 6 times that of one.
    torch.testing.assert_close(pieces["first"] * 6, whole["first"], rtol=1e-10, atol=0)
