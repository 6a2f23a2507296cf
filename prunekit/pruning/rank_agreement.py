"""Check that all ranks have chosen the same masks, by comparing hashes.

Every rank chooses for itself, from sums that are the same on all ranks. This module must not know how masks are chosen.
"""

import hashlib

import torch
from torch import Tensor

from prunekit.distributed.dtensor import is_sharded
from prunekit.distributed.ranks import gather_numbers, rank_count
from prunekit.errors import MaskError
from prunekit.pruning.update import ChosenMasks


def check_agreement(chosen: ChosenMasks) -> None:
    """Raise an error if the ranks have chosen different masks or weights; all ranks must call it.

    Raises:
        MaskError: on every rank; the message names the first layer that differs.
    """
    if rank_count() == 1:
        return
    hashes_of_ranks = gather_numbers([_hash(chosen, name) for name in chosen.masks])
    for rank, hashes in enumerate(hashes_of_ranks):
        for name, own, first in zip(chosen.masks, hashes, hashes_of_ranks[0], strict=True):
            if own != first:
                raise MaskError(
                    f"rank {rank} and rank 0 chose different masks or repaired weights for layer {name!r}; a criterion "
                    "must join its sums over all ranks and draw random numbers from the generator that it gets"
                )


def _hash(chosen: ChosenMasks, name: str) -> int:
    """Return 63 bits of the SHA-256 of a layer's choice, without sharded tensors, whose shards differ by rank."""
    found = hashlib.sha256()
    repaired = chosen.repaired.get(name)
    for tensor in (chosen.masks[name], chosen.pruned[name], repaired):
        if tensor is not None and not is_sharded(tensor):
            found.update(_bytes(tensor))
    return int.from_bytes(found.digest()[:8], "little") >> 1


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
