"""Whether all ranks have chosen the same masks: every rank chooses, from the same sums, and hashes are compared.

It must not know how masks are chosen.
"""

import hashlib

import torch
from torch import Tensor

from prunekit.distributed.dtensor import is_sharded
from prunekit.distributed.ranks import gather_numbers, rank_count
from prunekit.errors import MaskError
from prunekit.pruning.update import Chosen


def check_agreement(chosen: Chosen) -> None:
    """Compare what all ranks have chosen, layer by layer; all ranks must call it.

    Raises:
        MaskError: on every rank, naming the first layer that differs.
    """
    if rank_count() == 1:
        return
    everyone = gather_numbers([_hash(chosen, name) for name in chosen.masks])
    for rank, hashes in enumerate(everyone):
        for name, own, first in zip(chosen.masks, hashes, everyone[0], strict=True):
            if own != first:
                raise MaskError(
                    f"rank {rank} chose another mask of layer {name!r} than rank 0, or repaired its weight otherwise; "
                    "a criterion must join what it sums over all ranks, and draw from the generator it is given"
                )


def _hash(chosen: Chosen, name: str) -> int:
    """Return 63 bits of the SHA-256 of what was chosen for a layer; of a spread weight ranks have different parts."""
    found = hashlib.sha256()
    repaired = chosen.repaired.get(name)
    for tensor in (chosen.masks[name], chosen.pruned[name], repaired):
        if tensor is not None and not is_sharded(tensor):
            found.update(_bytes(tensor))
    return int.from_bytes(found.digest()[:8], "little") >> 1


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
