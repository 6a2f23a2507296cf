"""What all processes of a distributed run have together; without one, or with one process, nothing to do.

All ranks must call these functions in the same order. This module must not know what the numbers mean.
"""

import torch
from torch import Tensor, distributed


def rank_count() -> int:
    """Return how many processes take part in the run: 1 where ``torch.distributed`` is not set up."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_numbers(numbers: list[int]) -> list[list[int]]:
    """Return every rank's ``numbers``, in the order of the ranks; all ranks give equally many."""
    # NCCL takes nothing but what is on the rank's GPU.
    own = torch.tensor(numbers, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    everyone = [torch.empty_like(own) for _ in range(rank_count())]
    distributed.all_gather(everyone, own)
    return [[int(number) for number in numbers] for numbers in everyone]


def take_from_first(values: Tensor) -> Tensor:
    """Return the first rank's ``values``; all ranks give the same shape."""
    copy = values.clone()
    distributed.broadcast(copy, src=0)
    return copy


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum ``values`` over all ranks, in place: on every rank the same sums to the last bit."""
    distributed.all_reduce(values)
    return values
