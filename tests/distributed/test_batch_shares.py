from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare, split_batch
from prunekit.errors import ConfigError, DataError
from prunekit.runs.training.batches import check_share
from prunekit.runs.training.hardware import Hardware


class Faces(NamedTuple):
    images: Tensor
    people: Tensor


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_slices_that_make_up_the_batch(samples, ranks):
    faces = Faces(torch.arange(samples), torch.tensor(7))
    batch = {"x": torch.arange(samples * 2).reshape(samples, 2), "more": [faces]}
    shares = [split_batch(batch, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([share.batch["x"] for share in shares]), batch["x"])
    assert torch.equal(torch.cat([share.batch["more"][0].images for share in shares]), faces.images)
    assert all(share.batch["more"][0].people == 7 for share in shares)
    sizes = [len(share.batch["x"]) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert [share.share for share in shares] == [size / samples if samples else 0.0 for size in sizes]


@pytest.mark.parametrize("batch", [(torch.ones(3), torch.ones(4)), [], "text", torch.tensor(1.0)])
def test_a_batch_without_one_number_of_samples_is_an_error_that_names_the_override(batch):
    with pytest.raises(ConfigError, match=r"override Task\.batch_share"):
        split_batch(batch, 0, 2)


def test_an_empty_share_cannot_be_trained_on():
    check_share(BatchShare(None, 0.5))
    with pytest.raises(DataError, match="larger batches or fewer ranks"):
        check_share(BatchShare(None, 0.0))


def test_moving_a_named_tuple_keeps_its_type():
    moved = Hardware.of("cpu", Training()).move(Faces(torch.ones(2), torch.zeros(2)))
    assert isinstance(moved, Faces)
