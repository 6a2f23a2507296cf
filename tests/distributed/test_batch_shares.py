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
def test_parts_are_runs_of_samples_that_make_up_the_batch(samples, ranks):
    faces = Faces(torch.arange(samples), torch.tensor(7))
    batch = {"x": torch.arange(samples * 2).reshape(samples, 2), "more": [faces]}
    parts = [split_batch(batch, rank, ranks) for rank in range(ranks)]
    assert torch.equal(torch.cat([part.batch["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part.batch["more"][0].images for part in parts]), faces.images)
    assert all(part.batch["more"][0].people == 7 for part in parts)
    sizes = [len(part.batch["x"]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert [part.share for part in parts] == [size / samples if samples else 0.0 for size in sizes]


@pytest.mark.parametrize("batch", [(torch.ones(3), torch.ones(4)), [], "text", torch.tensor(1.0)])
def test_a_batch_without_a_number_of_samples_is_an_error_that_says_what_to_override(batch):
    with pytest.raises(ConfigError, match=r"override Task\.batch_share"):
        split_batch(batch, 0, 2)


def test_a_part_of_nothing_cannot_be_trained_on():
    check_share(BatchShare(None, 0.5))
    with pytest.raises(DataError, match="larger batches or fewer ranks"):
        check_share(BatchShare(None, 0.0))


def test_batches_that_are_named_tuples_are_moved_as_such():
    moved = Hardware.of("cpu", Training()).move(Faces(torch.ones(2), torch.zeros(2)))
    assert isinstance(moved, Faces)
