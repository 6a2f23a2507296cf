"""Zero what a mask drops, in place and exactly.

This module knows tensors. It must not know names, models, files or optimisers.
"""

import torch
from torch import Tensor

from prunekit.distributed.dtensor import is_sharded, local_shard, placement, shard_like
from prunekit.errors import MaskError

# The mask is converted to integers block by block in one buffer, so that the extra memory is 2 MiB for 32-bit weights
# and remains in the cache. 12.7 M weights take 3.4 ms on one thread, and reading and writing them alone 3.5 ms; blocks
# of 2**17 take 4.7 ms, and each costs two more hand-overs to threads, which are slow on a busy machine.
BLOCK = 2**19


# Up to here (256 KiB for 32-bit weights) the mask is stored as integers: the time depends on the number of calls.
SMALL = 2**16


_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskApplier:
    """Sets dropped values to zero in tensors of the mask's shape; in sharded tensors, those of the local shard.

    >>> weight = torch.tensor([-1.0, 2.0])
    >>> MaskApplier(torch.tensor([False, True]))(weight)
    >>> weight
    tensor([0., 2.])

    The bits of each value are multiplied, as an integer, by 1 or 0. Kept values keep all their bits, and dropped ones
    become +0.0, even if negative, infinite or NaN. On a CPU this is also twice as fast as multiplying floats, and five
    times as fast as ``mul_`` with a bool tensor.

    Args:
        mask: bool, True = keep; not sharded. It is not copied if tensors have its memory layout and device.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._prepared: dict[tuple[object, ...], Tensor] = {}
        self._small: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tensor: Tensor) -> None:
        """Set the dropped values of a tensor to zero, in place; any dtype of at most 8 bytes, any strides."""
        if tensor.layout != torch.strided:
            raise MaskError(f"cannot mask a tensor of layout {tensor.layout}; make its gradients dense (sparse=False)")
        # A small tensor of a known kind takes a short cut: in a small network each microsecond counts.
        kind = (type(tensor), tensor.dtype, tensor.stride(), tensor.device)
        integers = self._small.get(kind)
        if integers is not None:
            (tensor.detach() if tensor.requires_grad else tensor).view(integers.dtype).mul_(integers)
            return
        shard, integer = local_shard(tensor), _INTEGER[tensor.element_size()]
        if shard.numel() <= SMALL:
            integers = self._integers(tensor, shard, integer)
            shard.view(integer).mul_(integers)
            if not is_sharded(tensor):
                self._small[kind] = integers
            return
        order = tuple(sorted(range(shard.dim()), key=shard.stride, reverse=True))
        in_memory_order = shard.permute(order)
        if not in_memory_order.is_contiguous():  # a slice of a larger tensor
            shard.masked_fill_(~self.local_mask(tensor).to(shard.device), 0)
            return
        bits = in_memory_order.view(-1).view(integer)
        key = (placement(tensor), order, shard.device)
        if key not in self._prepared:  # gradients may have a memory order other than that of weights
            self._prepared[key] = self.local_mask(tensor).to(shard.device).permute(order).contiguous().view(-1)
        mask = self._prepared[key]
        if shard.device.type != "cpu":
            bits.mul_(mask)
            return
        buffer = torch.empty(min(BLOCK, bits.numel()), dtype=bits.dtype)
        for block, keep in zip(torch.split(bits, BLOCK), torch.split(mask, BLOCK), strict=True):
            block.mul_(buffer[: keep.numel()].copy_(keep))

    def _integers(self, tensor: Tensor, shard: Tensor, integer: torch.dtype) -> Tensor:
        """Return the mask as 1 and 0, in the size and memory order of the shard."""
        key = (placement(tensor), shard.stride(), integer, shard.device)
        if key not in self._prepared:
            self._prepared[key] = torch.empty_like(shard, dtype=integer).copy_(self.local_mask(tensor))
        return self._prepared[key]

    def local_mask(self, tensor: Tensor) -> Tensor:
        """Return the part of the mask for the local shard of a tensor."""
        return local_shard(shard_like(self.mask, tensor))
