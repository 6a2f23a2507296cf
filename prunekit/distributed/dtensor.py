"""Tensors that are spread over processes (torch's ``DTensor``): the part that lies here, and the whole.

FSDP2 (``fully_shard``) and tensor parallelism make the parameters of a model such tensors, with their gradients and
optimiser states. Whoever masks asks here for parts, whoever ranks asks for the whole. An ordinary tensor is its own
part and its own whole, at no cost. This module must not know masks, criteria or training.
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
    """Say whether parts of a tensor lie on other processes."""
    # Loading the module takes half a second; while nobody has, there can be no such tensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies on this process: the memory itself, not a copy, without a graph."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.to_local().detach()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, without a graph; an ordinary one shares its memory.

    All processes that hold parts must ask at the same point, since the parts are exchanged.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.full_tensor().detach()


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Spread a tensor that is whole, and the same, on every process as another one of its shape is spread.

    Each process takes its part of what it has, so nothing is exchanged.

    Args:
        tensor: ordinary, of any dtype.
        pattern: what lies where; where it is ordinary, ``tensor`` is returned as it is.
    """
    if not is_sharded(pattern):
        return tensor
    from torch.distributed.tensor import Replicate, distribute_tensor

    # Of a sum that is yet to be formed over the processes, each holds the whole shape.
    placements = [Replicate() if placement.is_partial() else placement for placement in pattern.placements]
    return distribute_tensor(tensor.detach(), pattern.device_mesh, placements, src_data_rank=None)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module with whole tensors, on the first process; on the others nothing.

    Parts are exchanged, so all processes must ask; one tensor after another, and on the first one they go to the CPU.
    A module that nothing of is spread gives what its ``state_dict`` gives, on every process.
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
    """Load a state dict of whole tensors, the same on every process, into a module that may be spread.

    Raises:
        RuntimeError: as ``load_state_dict`` does, when it does not fit.
    """
    there: dict[str, Tensor] = module.state_dict()
    fitting = {name for name, tensor in state.items() if name in there and there[name].shape == tensor.shape}
    module.load_state_dict(
        {name: shard_like(tensor, there[name]) if name in fitting else tensor for name, tensor in state.items()}
    )


def shard_states(states: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Spread the states of an optimiser's ``state_dict`` as its parameters are, where they are whole."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {name: _spread_state(value, parameters[index]) for name, value in state.items()}
        for index, state in states.items()
    }


def _spread_state(value: Any, parameter: Tensor) -> Any:
    fits = isinstance(value, Tensor) and not is_sharded(value) and value.shape == parameter.shape
    return shard_like(value, parameter) if fits else value


def placement(tensor: Tensor) -> object:
    """Return what is equal, and has a hash, for tensors of one shape that are spread alike."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


def reshard(model: nn.Module) -> None:
    """Make the parameters of a model those that the optimiser steps: the spread ones.

    FSDP2 puts whole parameters in their place while a module computes, and leaves those of the outermost module there
    until the backward pass. Without FSDP2 this does nothing.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
