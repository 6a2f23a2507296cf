"""Sharded tensors (torch's ``DTensor``): local shards, full tensors, and sharding one tensor like another.

FSDP2 (``fully_shard``) and tensor parallelism shard the parameters of a model, their gradients and their optimiser
states. Masking needs local shards, selection needs full tensors. An ordinary tensor is its own shard and its own full
tensor, at no cost. This module must not know masks, criteria or training.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is sharded over processes."""
    # Loading the module takes half a second; until something loads it, no tensor can be sharded.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return the shard of a tensor on this process, detached; it shares the tensor's memory."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.to_local().detach()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor, detached; an ordinary tensor shares its memory.

    A collective operation: all processes with a shard must call it at the same point.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.full_tensor().detach()


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a full tensor, the same on every process, sharded like another tensor of its shape.

    Each process takes its shard from its own copy, without communication.

    Args:
        tensor: an ordinary tensor of any dtype.
        pattern: the tensor whose sharding to use; if it is ordinary, ``tensor`` is returned.
    """
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import Replicate, distribute_tensor

    # Each process has the full shape of a sum that is still to be reduced over the processes.
    placements = [Replicate() if placement.is_partial() else placement for placement in pattern.placements]
    return distribute_tensor(tensor.detach(), pattern.device_mesh, placements, src_data_rank=None)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module with full tensors on the first rank, and an empty dict on the others.

    A collective operation: all ranks must call it. Tensors are gathered one at a time, and the first rank moves them to
    the CPU. A module without sharded tensors returns its ``state_dict`` on every rank.
    """
    state: dict[str, Tensor] = module.state_dict()
    if not any(is_sharded(tensor) for tensor in state.values()):
        return state
    first, kept = torch.distributed.get_rank() == 0, {}
    for name, tensor in state.items():
        found = full_tensor(tensor)
        if first:
            kept[name] = found.cpu()
    return kept


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of full tensors, the same on every process, into a module that may be sharded.

    Raises:
        RuntimeError: the state dict does not fit, as in ``load_state_dict``.
    """
    there: dict[str, Tensor] = module.state_dict()
    fitting = {name for name, tensor in state.items() if name in there and there[name].shape == tensor.shape}
    module.load_state_dict(
        {name: shard_like(tensor, there[name]) if name in fitting else tensor for name, tensor in state.items()}
    )


def shard_states(states: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Return the states of an optimiser's ``state_dict``, with full tensors sharded like their parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {name: _shard_state(value, parameters[index]) for name, value in state.items()}
        for index, state in states.items()
    }


def _shard_state(value: Any, parameter: Tensor) -> Any:
    fits = isinstance(value, Tensor) and not is_sharded(value) and value.shape == parameter.shape
    return shard_like(value, parameter) if fits else value


def placement(tensor: Tensor) -> object:
    """Return a hashable value that is equal for tensors of one shape with the same sharding."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


def reshard(model: nn.Module) -> None:
    """Restore the sharded parameters of a model, which are the ones an optimiser steps.

    FSDP2 replaces them by full parameters while a module computes, and those of the outermost module until the backward
    pass. Without FSDP2 this does nothing.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
