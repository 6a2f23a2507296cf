import torch
from prunekit_deepid2plus.comparable import Comparable, cosine
from torch import nn


def test_scores_of_pairs_and_the_matrix_agree() -> None:
    faces = Comparable(torch.randn(7, 3).double(), torch.randn(7).double())
    first, second = torch.triu_indices(7, 7)
    matrix = faces.matrix(slice(2, 5), slice(1, None))
    whole = faces.matrix(slice(None), slice(None))
    torch.testing.assert_close(whole[first, second], faces.scores(first, second))
    torch.testing.assert_close(matrix, whole[2:5, 1:])
    torch.testing.assert_close(faces.take(torch.tensor([4, 0])).matrix(slice(0, 1), slice(1, 2)), whole[4:5, :1])


def test_cosine_is_that_of_torch_and_0_for_a_feature_of_zeros() -> None:
    features = torch.randn(6, 4)
    features[5] = 0
    first, second = torch.triu_indices(6, 6)
    expected = nn.functional.cosine_similarity(features[first].double(), features[second].double())
    torch.testing.assert_close(cosine(features).scores(first, second), expected)


def test_scores_are_exact_under_bf16_autocast() -> None:
    features = torch.randn(20, 8)
    everything = slice(None)
    with torch.autocast("cpu", torch.bfloat16):
        lower = cosine(features).matrix(everything, everything)
    assert torch.equal(lower, cosine(features).matrix(everything, everything))
