"""Zero what a mask drops, in place and exactly.

This module knows tensors. It must not know names, models, files or optimisers.
"""

import torch
from torch import Tensor

from prunekit.distributed.dtensor import is_sharded, local_shard, placement, shard_like
from prunekit.errors import MaskError

# The mask becomes integers block by block in one buffer, so that the extra memory is 2 MiB for 32-bit weights and
# stays in the cache. 12.7 M of them take 3.4 ms on one thread, where reading and writing them takes 3.5 ms; blocks
# of 2**17 take 4.7 ms, and each costs two more hand-overs to the threads, which a busy machine makes slow.
BLOCK = 2**19


# Up to here, 256 KiB for 32-bit weights, the mask is kept as integers: what counts is how many calls are made.
SMALL = 2**16


_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskApplier:
    """Zeroes what a mask drops, in tensors of the mask's shape; of those spread over processes, in the part here.

    The bits of each number are multiplied, as an integer, by 1 or 0. So kept values stay as they are to the
    last bit, and dropped ones become +0.0 whatever they were: negative, infinite or NaN. On a CPU this is
    also 2 times faster than multiplying floats and 5 times faster than ``mul_`` with a bool tensor.

    Args:
        mask: bool, True = keep, whole. It is not copied where tensors have its memory layout and device.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._prepared: dict[tuple[object, ...], Tensor] = {}
        self._small: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tensor: Tensor) -> None:
        """Zero the dropped entries of ``tensor`` in place; any dtype of at most 8 bytes, any strides."""
        if tensor.layout != torch.strided:
            raise MaskError(f"cannot mask a tensor of layout {tensor.layout}; make its gradients dense (sparse=False)")
        # What has been masked before and is small is recognised at once: of a small network each microsecond counts.
        kind = (type(tensor), tensor.dtype, tensor.stride(), tensor.device)
        integers = self._small.get(kind)
        if integers is not None:
            (tensor.detach() if tensor.requires_grad else tensor).view(integers.dtype).mul_(integers)
            return
        part, integer = local_shard(tensor), _INTEGER[tensor.element_size()]
        if part.numel() <= SMALL:
            integers = self._integers(tensor, part, integer)
            part.view(integer).mul_(integers)
            if not is_sharded(tensor):
                self._small[kind] = integers
            return
        order = tuple(sorted(range(part.dim()), key=part.stride, reverse=True))
        in_memory_order = part.permute(order)
        if not in_memory_order.is_contiguous():  # a slice of something larger
            part.masked_fill_(~self.local_mask(tensor).to(part.device), 0)
            return
        bits = in_memory_order.view(-1).view(integer)
        key = (placement(tensor), order, part.device)
        if key not in self._prepared:  # gradients may have another order than weights
            self._prepared[key] = self.local_mask(tensor).to(part.device).permute(order).contiguous().view(-1)
        mask = self._prepared[key]
        if part.device.type != "cpu":
            bits.mul_(mask)
            return
        buffer = torch.empty(min(BLOCK, bits.numel()), dtype=bits.dtype)
        for block, keep in zip(torch.split(bits, BLOCK), torch.split(mask, BLOCK), strict=True):
            block.mul_(buffer[: keep.numel()].copy_(keep))

    def _integers(self, tensor: Tensor, part: Tensor, integer: torch.dtype) -> Tensor:
        """Return the mask as 1 and 0 of the part's size and memory order."""
        key = (placement(tensor), part.stride(), integer, part.device)
        if key not in self._prepared:
            self._prepared[key] = torch.empty_like(part, dtype=integer).copy_(self.local_mask(tensor))
        return self._prepared[key]

    def local_mask(self, tensor: Tensor) -> Tensor:
        """Return what of the mask belongs to the part of ``tensor`` that lies on this process."""
        return local_shard(shard_like(self.mask, tensor))
