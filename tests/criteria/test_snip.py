import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit.criteria.snip import Snip
from prunekit.errors import DataError


def test_scores_are_gradient_times_weight_of_the_summed_loss(
    mixed_network, labelled_batches, scores_of, batch_gradients
):
    scores = scores_of(Snip, mixed_network, labelled_batches)
    found = batch_gradients
    for name, score in scores.items():
        summed = sum(batch[name] for batch in found)
        expected = (summed * mixed_network[int(name)].weight).abs()
        torch.testing.assert_close(score.flatten(), expected.flatten(), rtol=1e-12, atol=0)


def test_the_order_of_batches_does_not_matter(mixed_network, labelled_batches, scores_of):
    scores = scores_of(Snip, mixed_network, labelled_batches)
    for name, score in scores_of(Snip, mixed_network, labelled_batches[::-1]).items():
        torch.testing.assert_close(score, scores[name], rtol=1e-6, atol=1e-15)


def test_a_score_is_the_change_of_the_loss_for_a_small_change_of_the_weight(mixed_network, labelled_batches, scores_of):
    scores = scores_of(Snip, mixed_network, labelled_batches)
    weight, part = mixed_network[5].weight, 1e-6

    def loss():
        return sum(cross_entropy(mixed_network(images), labels) for images, labels in labelled_batches)

    with torch.no_grad():
        before, kept = loss(), weight[3, 7].clone()
        weight[3, 7] = kept * (1 - part)
        change = (loss() - before).abs() / part
    torch.testing.assert_close(scores["5"][0, 3, 7], change, rtol=1e-4, atol=1e-12)


def test_a_frozen_layer_is_named(mixed_network, labelled_batches, scores_of):
    mixed_network[2].weight.requires_grad_(requires_grad=False)
    with pytest.raises(DataError, match="layer '2': its weight does not require a gradient"):
        scores_of(Snip, mixed_network, labelled_batches)
