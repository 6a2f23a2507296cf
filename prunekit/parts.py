"""The part of each batch that one of several processes works on. All parts together are the batch of one process.

It must not know what is in a batch beyond its tensors, nor what is done with it.
"""

from typing import Any, NamedTuple

from prunekit.errors import ConfigError
from prunekit.trees import map_tensors, tensors_in


class Part(NamedTuple):
    """One rank's part of a batch.

    Attributes:
        batch: like the whole one, with fewer samples.
        share: its weight in the loss of the whole batch; those of all ranks add up to 1. For a loss that is the mean
            over samples: samples here / samples of all.
    """

    batch: Any
    share: float


def run_of(samples: int, rank: int, ranks: int) -> slice:
    """Return which samples of a batch are a rank's: runs one behind the other, whose lengths differ by one at most."""
    return slice(samples * rank // ranks, samples * (rank + 1) // ranks)


def split_batch(batch: Any, rank: int, ranks: int) -> Part:
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
            "say what a rank's part is: override Task.part"
        )
    samples = lengths[0]
    mine = run_of(samples, rank, ranks)
    cut = map_tensors(lambda tensor: tensor[mine] if tensor.dim() else tensor, batch)
    return Part(cut, (mine.stop - mine.start) / samples if samples else 0.0)
