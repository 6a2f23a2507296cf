"""Read this rank's shares of a task's batches, ahead of time in worker processes if requested.

It must not know the model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.distributed.batch_shares import BatchShare
from prunekit.distributed.ranks import own_rank, rank_count
from prunekit.errors import DataError


@attrs.frozen(eq=False)
class RankBatches(Sequence[BatchShare]):
    """This rank's share of each batch of an epoch; in a single process, the whole batches.

    Attributes:
        task: splits batches.
        batches: the whole batches.
        rank: index of this process.
        ranks: number of processes. Like the rank it is stored, because a worker process does not know it.
    """

    task: Task
    batches: Sequence[Any]
    rank: int = attrs.field(factory=own_rank)
    ranks: int = attrs.field(factory=rank_count)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        if self.ranks == 1:
            return BatchShare(self.batches[index], 1.0)
        return self.task.batch_share(self.batches, index, self.rank, self.ranks)


@attrs.define(eq=False)
class BatchStream:
    """This rank's shares of the training batches of all epochs, numbered consecutively from 0.

    Attributes:
        task: supplies the batches.
        seeds: of their order.
        length: batches used per epoch.
        rank: index of this process.
        ranks: number of processes.
    """

    task: Task
    seeds: Seeds
    length: int
    rank: int = attrs.field(factory=own_rank)
    ranks: int = attrs.field(factory=rank_count)
    _epoch: int = attrs.field(default=-1, init=False)
    _shares: Sequence[BatchShare] = attrs.field(default=(), init=False)

    def __getitem__(self, number: int) -> BatchShare:
        epoch, index = divmod(number, self.length)
        if epoch != self._epoch:
            batches = self.task.batches("train", epoch, self.seeds)
            self._epoch, self._shares = epoch, RankBatches(self.task, batches, self.rank, self.ranks)
        return self._shares[index]


def check_share(own: BatchShare) -> None:
    """Refuse an empty share, which has no loss.

    Raises:
        DataError: when the batch has fewer samples than there are ranks.
    """
    if own.share == 0:
        raise DataError(
            f"a batch has no sample for rank {own_rank()} of {rank_count()}; use larger batches or fewer ranks"
        )


def read_ahead(source: BatchStream, numbers: range, workers: int, *, pinned: bool = False) -> Iterator[BatchShare]:
    """Yield ``source[number]`` for all numbers, in order.

    Args:
        source: the batches; each worker gets a copy of it.
        numbers: of the batches to read.
        workers: number of processes that prepare batches; they start with the first batch and end with the iterator.
            0: this process prepares them.
        pinned: whether workers' batches are put into pinned memory, from which a GPU copies asynchronously.
    """
    if workers == 0:
        for number in numbers:
            yield source[number]
        return
    # A generator of its own: otherwise, the loader would draw from the global one and change later random numbers.
    loader: DataLoader[BatchShare] = DataLoader(
        source,  # type: ignore[arg-type] # all of a map-style dataset that a sampler needs
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),
    )
    yield from loader


def weighted(loss: Tensor, factor: float) -> Tensor:
    """Return ``loss * factor``; a factor of 1, as in a single process, costs no kernel."""
    return loss if factor == 1 else loss * factor
