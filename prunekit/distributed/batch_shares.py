"""The part of each batch that one of several processes works on. All parts together are the batch of one process.

It must not know what is in a batch beyond its tensors, nor what is done with it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from prunekit.errors import ConfigError


class BatchShare(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        batch: like the whole one, with fewer samples.
        share: its weight in the loss of the whole batch; those of all ranks add up to 1. For a loss that is the mean
            over samples: samples here / samples of all.
    """

    batch: Any
    share: float


def rank_slice(samples: int, rank: int, ranks: int) -> slice:
    """Return which samples of a batch are a rank's: runs one behind the other, whose lengths differ by one at most."""
    return slice(samples * rank // ranks, samples * (rank + 1) // ranks)


def split_batch(batch: Any, rank: int, ranks: int) -> BatchShare:
    """Return a rank's part of a batch: a run of its samples, the first dimension of every tensor.

    What is no tensor, or a single number, goes to all ranks.

    Args:
        batch: a tensor or nested tuples, lists, dicts of tensors.
        rank: from 0.
        ranks: how many there are.

    Raises:
        ConfigError: when tensors have different numbers of samples.
    """
    lengths = sorted({len(tensor) for tensor in tensors_in(batch) if tensor.dim()})
    if len(lengths) != 1:
        raise ConfigError(
            f"a batch has tensors with {lengths} in their first dimension, so nobody knows its samples; "
            "override Task.batch_share to split it"
        )
    samples = lengths[0]
    mine = rank_slice(samples, rank, ranks)
    cut = map_tensors(lambda tensor: tensor[mine] if tensor.dim() else tensor, batch)
    return BatchShare(cut, (mine.stop - mine.start) / samples if samples else 0.0)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, tuple | list | dict):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from tensors_in(part)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch of the same form with every tensor changed; named tuples stay such, what is no tensor stays."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, tuple | list):
        parts = [map_tensors(change, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return {key: map_tensors(change, part) for key, part in batch.items()} if isinstance(batch, dict) else batch
