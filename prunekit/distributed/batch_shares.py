"""Each rank's share of a batch; the shares of all ranks make up the batch a single process would see.

It must not know what a batch means beyond its tensors, or what it is used for.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from prunekit.errors import ConfigError


class BatchShare(NamedTuple):
    """One rank's share of a batch.

    Attributes:
        batch: of the same form as the whole batch, with fewer samples.
        share: its weight in the loss of the whole batch; the weights of all ranks add up to 1. If the loss is a mean
            over samples: samples in this share / samples in the batch.
    """

    batch: Any
    share: float


def rank_slice(samples: int, rank: int, ranks: int) -> slice:
    """Return the slice of a batch's samples that belongs to a rank; lengths differ by at most one between ranks.

    >>> [rank_slice(5, rank, 2) for rank in range(2)]
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return slice(samples * rank // ranks, samples * (rank + 1) // ranks)


def split_batch(batch: Any, rank: int, ranks: int) -> BatchShare:
    """Return a rank's share of a batch: a slice of its samples, along the first dimension of every tensor.

    >>> split_batch((torch.arange(5), "all ranks get this"), rank=0, ranks=2)
    BatchShare(batch=(tensor([0, 1]), 'all ranks get this'), share=0.4)

    Tensors without dimensions, and values that are not tensors, are the same on all ranks.

    Args:
        batch: a tensor or nested tuples, lists and dicts of tensors.
        rank: index of the process, from 0.
        ranks: number of processes.

    Raises:
        ConfigError: the tensors differ in their first dimension, or there are none.
    """
    lengths = sorted({len(tensor) for tensor in tensors_in(batch) if tensor.dim()})
    if len(lengths) != 1:
        raise ConfigError(
            f"cannot split a batch over ranks: the first dimensions of its tensors are {lengths}, expected one number "
            "of samples; override Task.batch_share"
        )
    samples = lengths[0]
    mine = rank_slice(samples, rank, ranks)
    cut = map_tensors(lambda tensor: tensor[mine] if tensor.dim() else tensor, batch)
    return BatchShare(cut, (mine.stop - mine.start) / samples if samples else 0.0)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch: in nested tuples, lists and dicts, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list | dict):
        for entry in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_in(entry)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch of the same form, named tuples included, with ``change`` applied to every tensor."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        changed = [map_tensors(change, entry) for entry in batch]
        return type(batch)(*changed) if hasattr(batch, "_fields") else type(batch)(changed)
    return {key: map_tensors(change, entry) for key, entry in batch.items()} if isinstance(batch, dict) else batch
