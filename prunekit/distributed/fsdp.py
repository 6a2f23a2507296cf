"""Shard one model over several processes with PyTorch's ``fully_shard`` (FSDP2), block by block.

Each process keeps a shard of every parameter. Each block of the model is gathered while it computes and freed
afterwards. This module must not know tasks, masks or stages.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from prunekit.distributed.ranks import rank_count
from prunekit.distributed.torch_internals import uncompiled


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the modules of a network to gather one at a time: its direct children that have parameters.

    The members of a ``ModuleList`` or a ``ModuleDict`` count as direct children. Modules that share a parameter are
    excluded, since all of them need it in full.
    """
    children = [child for child in _children(network) if any(True for _ in child.parameters())]
    owners = Counter(id(parameter) for child in children for parameter in child.parameters())
    return [child for child in children if all(owners[id(parameter)] == 1 for parameter in child.parameters())]


def _children(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _children(child)
        elif not isinstance(child, nn.ParameterList | nn.ParameterDict):  # never called as modules
            yield child


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Shard a model's parameters over all processes, in place, and move them to a device, block by block.

    Names and values stay the same.

    Args:
        model: the same on every process, on any device.
        blocks: modules in the model, inner ones before outer ones; parameters in no block are gathered with the model.
        device: the device to compute on.
    """
    # Loading these takes half a second, which a single process does not need.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Modules do return views, but nothing in prunekit writes to their outputs in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (rank_count(),))
    for block in blocks:
        if block is not model:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The model too: after a forward pass without backward its parameters would stay full, and not the ones trained.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_fully_sharded(model: nn.Module) -> bool:
    """Return whether ``shard`` has sharded a model."""
    if rank_count() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(uncompiled(model), FSDPModule)
