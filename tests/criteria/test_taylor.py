import pytest
import torch

from prunekit.criteria.taylor import Taylor
from prunekit.errors import DataError


def test_scores_are_the_squared_products_of_each_batch_summed(
    mixed_network, labelled_batches, scores_of, batch_gradients
):
    scores = scores_of(Taylor, mixed_network, labelled_batches)
    found = batch_gradients
    for name, score in scores.items():
        expected = sum((batch[name] * mixed_network[int(name)].weight).square() for batch in found)
        torch.testing.assert_close(score.flatten(), expected.flatten(), rtol=1e-12, atol=0)


def test_the_order_of_batches_does_not_matter(mixed_network, labelled_batches, scores_of):
    scores = scores_of(Taylor, mixed_network, labelled_batches)
    for name, score in scores_of(Taylor, mixed_network, labelled_batches[::-1]).items():
        torch.testing.assert_close(score, scores[name], rtol=1e-6, atol=0)


def test_without_batches_it_raises_an_error(mixed_network, scores_of):
    with pytest.raises(DataError, match="criterion 'taylor' observed no gradients"):
        scores_of(Taylor, mixed_network, [])
