"""Reading the batches of a task: this process's part of each, ahead of time in worker processes on request.

It must not know what is done with them.
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
class Parts(Sequence[BatchShare]):
    """This process's part of each batch: all of it, where there are no other processes.

    Attributes:
        task: says what a part is.
        batches: an epoch of whole ones.
        rank: of this process.
        ranks: how many there are; a worker process could not say.
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
    """The training batches of one epoch after another, numbered through; of each, this process's part.

    Attributes:
        task: gives them.
        seeds: the seeds of their order.
        length: batches of an epoch that are used.
        rank: of this process.
        ranks: how many there are.
    """

    task: Task
    seeds: Seeds
    length: int
    rank: int = attrs.field(factory=own_rank)
    ranks: int = attrs.field(factory=rank_count)
    _epoch: int = attrs.field(default=-1, init=False)
    _parts: Sequence[BatchShare] = attrs.field(default=(), init=False)

    def __getitem__(self, number: int) -> BatchShare:
        epoch, index = divmod(number, self.length)
        if epoch != self._epoch:
            batches = self.task.batches("train", epoch, self.seeds)
            self._epoch, self._parts = epoch, Parts(self.task, batches, self.rank, self.ranks)
        return self._parts[index]


def check_share(part: BatchShare) -> None:
    """Refuse a part of nothing, of which there is no loss.

    Raises:
        DataError: when the batch has fewer samples than there are ranks.
    """
    if part.share == 0:
        raise DataError(
            f"a batch has no sample for rank {own_rank()} of {rank_count()}; take larger batches or fewer ranks"
        )


def read_ahead(source: BatchStream, numbers: range, workers: int, *, pinned: bool = False) -> Iterator[BatchShare]:
    """Yield ``source[i]`` for the numbers, in order, prepared by worker processes when there are any.

    Args:
        source: what to read; a worker gets a copy.
        numbers: what to read of it.
        workers: processes; they start when the first batch is asked for, and end with the iterator.
        pinned: leave the workers' batches in memory that a GPU copies from by itself.
    """
    if workers == 0:
        for number in numbers:
            yield source[number]
        return
    # Its own generator: the loader would draw from the global one and move everybody's numbers.
    loader: DataLoader[BatchShare] = DataLoader(
        source,  # type: ignore[arg-type] # as much of a map-style dataset as a sampler needs
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),
    )
    yield from loader


def weighted(loss: Tensor, factor: float) -> Tensor:
    """Return the product; alone, a process has nothing to multiply by, and starts no kernel for it."""
    return loss if factor == 1 else loss * factor
