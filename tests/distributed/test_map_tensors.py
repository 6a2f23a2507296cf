from typing import NamedTuple

import torch

from prunekit.distributed.batch_shares import map_tensors, tensors_in


class Pair(NamedTuple):
    one: object
    other: object


def test_every_tensor_is_changed_and_the_form_is_kept():
    batch = [Pair(torch.ones(2), {"a": (torch.ones(1), "words")}), 3]
    changed = map_tensors(lambda tensor: tensor + 1, batch)
    assert [tensor.tolist() for tensor in tensors_in(changed)] == [[2, 2], [2]]
    assert isinstance(changed[0], Pair)
    assert changed[0].other["a"][1] == "words"
    assert changed[1] == 3
    assert [tensor.tolist() for tensor in tensors_in(batch)] == [[1, 1], [1]]
