"""One model spread over several processes: PyTorch's ``fully_shard`` (FSDP2), and what is whole at a time.

Each process keeps a part of every parameter. One block of the model after another is gathered while it computes and let
go afterwards. This module must not know tasks, masks or stages.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from prunekit.distributed.ranks import rank_count
from prunekit.distributed.torch_internals import uncompiled


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the modules of a network that are gathered one after another: those it is directly made of.

    What a ``ModuleList`` or a ``ModuleDict`` holds counts as the network's own. Modules that share a parameter are left
    out, since it must be whole for all of them; so is what has no parameters.
    """
    parts = [part for part in _parts(network) if any(True for _ in part.parameters())]
    owners = Counter(id(parameter) for part in parts for parameter in part.parameters())
    return [part for part in parts if all(owners[id(parameter)] == 1 for parameter in part.parameters())]


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child)
        elif not isinstance(child, nn.ParameterList | nn.ParameterDict):  # nobody calls these
            yield child


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Spread a model's parameters over all processes, in place; names and values stay, and each is on the device.

    Args:
        model: the same on every process, wherever it is; one block after another is moved to the device.
        blocks: modules in it, inner ones first; what is in none is gathered with the model.
        device: where to compute.
    """
    # Loading these takes half a second, which one process does not need.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # True of what a module returns, and nothing in the engine changes that in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (rank_count(),))
    for block in blocks:
        if block is not model:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The outermost too: without a backward pass its parameters would stay whole, and not be those that are trained.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_fully_sharded(model: nn.Module) -> bool:
    """Say whether ``shard`` has spread a model."""
    if rank_count() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(uncompiled(model), FSDPModule)
