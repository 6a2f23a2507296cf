"""What all processes of a distributed run have together; without one, or with one process, nothing to do.

All ranks must call these functions in the same order. This module must not know what the numbers mean.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunekit.distributed.dtensor import is_sharded


def rank_count() -> int:
    """Return how many processes take part in the run: 1 where ``torch.distributed`` is not set up."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_rank() -> int:
    """Return the number of this process, from 0; the first one writes and speaks for all."""
    return distributed.get_rank() if rank_count() > 1 else 0


def gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """Return every rank's ``numbers``, in the order of the ranks; all ranks give equally many."""
    if rank_count() == 1:
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.int64, device=_device_of_numbers())
    return [[int(number) for number in gathered] for gathered in gather(own)]


def _device_of_numbers() -> str:
    # NCCL alone takes nothing but what is on the rank's GPU.
    return "cpu" if "cpu:" in str(distributed.get_backend_config()) else "cuda"


def gather(values: Tensor) -> list[Tensor]:
    """Return every rank's ``values``, in the order of the ranks; all ranks give the same shape."""
    if rank_count() == 1:
        return [values]
    everyone = [torch.empty_like(values) for _ in range(rank_count())]
    distributed.all_gather(everyone, values)
    return everyone


def gather_samples(values: Tensor) -> Tensor:
    """Return the samples of all ranks, one after the other in the order of the ranks, with gradients to all of them.

    For losses that look at several samples at once: see ``Task.loss``. With one process it returns ``values``.

    Args:
        values: ``[samples, ...]``; the number of samples may differ from rank to rank.
    """
    if rank_count() == 1:
        return values
    counts = [count for (count,) in gather_numbers([len(values)])]
    first = sum(counts[: own_rank()])
    # Everyone's place filled by its owner, the rest 0: a sum, whose gradient torch knows with every backend.
    whole = values.new_zeros(sum(counts), *values.shape[1:])
    whole[first : first + len(values)] = values
    return sum_with_gradients(whole)


def take_from_first(values: Tensor) -> Tensor:
    """Return the first rank's ``values``; all ranks give the same shape."""
    copy = values.clone()
    if rank_count() > 1:
        distributed.broadcast(copy, src=0)
    return copy


def text_from_first(text: str) -> str:
    """Return the first rank's text, whatever the others give."""
    if rank_count() == 1:
        return text
    encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device_of_numbers())
    length = gather_numbers([len(encoded)])[0][0]
    if own_rank() > 0:
        encoded = encoded.new_empty(length)
    distributed.broadcast(encoded, src=0)
    return bytes(encoded.tolist()).decode()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum ``values`` over all ranks, in place: on every rank the same sums to the last bit."""
    if rank_count() > 1:
        distributed.all_reduce(values)
    return values


def sum_with_gradients(values: Tensor) -> Tensor:
    """Return the sum over all ranks; the gradient of the sum goes back to the values of every rank."""
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call] # torch's stubs leave it untyped
    return summed


class _Sum(torch.autograd.Function):
    """What every rank adds to the sum gets the gradients that the sum gets on all ranks: again a sum."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return sum_with_gradients(gradient)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of the parameters over all ranks, in place; one that no rank has stays ``None``.

    Those of parameters that are spread over the ranks have been averaged in the backward pass (FSDP2).
    """
    if rank_count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    everyone = gather_numbers([parameter.grad is not None for parameter in trained])
    for parameter, *there in zip(trained, *everyone, strict=True):
        if not any(there):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if is_sharded(parameter):
            parameter.grad *= rank_count()
        else:
            sum_over_ranks(parameter.grad)


def wait_for_all() -> None:
    """Wait until every rank has come here."""
    gather_numbers([0])
