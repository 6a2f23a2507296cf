"""Collective operations across ranks; no-ops in a single process.

All ranks must call these functions in the same order. This module must not know what the numbers mean.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunekit.distributed.dtensor import is_sharded


def rank_count() -> int:
    """Return the number of processes in the run: 1 if ``torch.distributed`` is not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_rank() -> int:
    """Return the index of this process, from 0; rank 0 writes files and reports for all."""
    return distributed.get_rank() if rank_count() > 1 else 0


def gather_numbers(numbers: Sequence[int]) -> list[list[int]]:
    """Return every rank's ``numbers``, in rank order; all ranks must pass equally many."""
    if rank_count() == 1:
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.int64, device=_device_of_numbers())
    return [[int(number) for number in gathered] for gathered in gather(own)]


def _device_of_numbers() -> str:
    # NCCL on its own accepts only tensors on the rank's GPU.
    return "cpu" if "cpu:" in str(distributed.get_backend_config()) else "cuda"


def gather(values: Tensor) -> list[Tensor]:
    """Return every rank's ``values``, in rank order; all ranks must pass the same shape."""
    if rank_count() == 1:
        return [values]
    everyone = [torch.empty_like(values) for _ in range(rank_count())]
    distributed.all_gather(everyone, values)
    return everyone


def gather_samples(values: Tensor) -> Tensor:
    """Return the samples of all ranks, concatenated in rank order, with gradients to all of them.

        features = gather_samples(model(images))  # of the whole batch, on every rank

    For losses over several samples at once: see ``Task.loss``. A single process gets ``values`` back.

    Args:
        values: ``[samples, ...]``; the number of samples may differ between ranks.
    """
    if rank_count() == 1:
        return values
    counts = [count for (count,) in gather_numbers([len(values)])]
    first = sum(counts[: own_rank()])
    # Each rank fills its own place and leaves the rest 0: a sum, whose gradient is available with every backend.
    whole = values.new_zeros(sum(counts), *values.shape[1:])
    whole[first : first + len(values)] = values
    return sum_with_gradients(whole)


def take_from_first(values: Tensor) -> Tensor:
    """Return the first rank's ``values``; all ranks must pass the same shape."""
    copy = values.clone()
    if rank_count() > 1:
        distributed.broadcast(copy, src=0)
    return copy


def text_from_first(text: str) -> str:
    """Return the first rank's text; the other ranks may pass any."""
    if rank_count() == 1:
        return text
    encoded = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device_of_numbers())
    length = gather_numbers([len(encoded)])[0][0]
    if own_rank() > 0:
        encoded = encoded.new_empty(length)
    distributed.broadcast(encoded, src=0)
    return bytes(encoded.tolist()).decode()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum ``values`` over all ranks, in place; the result has the same bits on every rank."""
    if rank_count() > 1:
        distributed.all_reduce(values)
    return values


def sum_with_gradients(values: Tensor) -> Tensor:
    """Return the sum over all ranks; the gradient of the sum flows back to the values of every rank."""
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call] # torch's stubs leave it untyped
    return summed


class _Sum(torch.autograd.Function):
    """A sum over ranks, whose gradient is the sum over ranks of its gradients."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return sum_with_gradients(gradient)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of the parameters over all ranks, in place; a gradient that no rank has stays ``None``.

    FSDP2 has averaged the gradients of sharded parameters in the backward pass; they are scaled to sums.
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
    """Wait until every rank has called this."""
    gather_numbers([0])
