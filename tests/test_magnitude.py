import torch

from prunekit.builtin.magnitude import Magnitude
from prunekit.selection import Quota


def test_the_largest_absolute_weights_stay():
    weight = torch.tensor([[[0.1, -0.9, 0.5, -0.2]]])
    criterion = Magnitude()
    scores = criterion.score(weight, torch.Generator())
    mask = criterion.select(scores, Quota(0.5, (4,)), torch.Generator())
    assert mask.tolist() == [[[False, True, True, False]]]


def test_no_data_is_needed():
    assert not Magnitude.needs
