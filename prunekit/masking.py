"""The two things done with one mask: finding the parameter it belongs to, and making dropped weights zero.

This module knows tensors, names and models. It must not know files, optimisers, criteria or training.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunekit.computed import carriers, stays_finite
from prunekit.errors import MaskError
from prunekit.sharding import is_spread, own_part, placement, reshard, spread_like

# The mask becomes integers block by block in one buffer, so that the extra memory is 2 MiB for 32-bit weights and
# stays in the cache. 12.7 M of them take 3.4 ms on one thread, where reading and writing them takes 3.5 ms; blocks
# of 2**17 take 4.7 ms, and each costs two more hand-overs to the threads, which a busy machine makes slow.
BLOCK = 2**19
# Up to here, 256 KiB for 32-bit weights, the mask is kept as integers: what counts is how many calls are made.
SMALL = 2**16
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_Weight = TypeVar("_Weight", bound=Tensor)


class Keeper:
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
        part, integer = own_part(tensor), _INTEGER[tensor.element_size()]
        if part.numel() <= SMALL:
            integers = self._integers(tensor, part, integer)
            part.view(integer).mul_(integers)
            if not is_spread(tensor):
                self._small[kind] = integers
            return
        order = tuple(sorted(range(part.dim()), key=part.stride, reverse=True))
        in_memory_order = part.permute(order)
        if not in_memory_order.is_contiguous():  # a slice of something larger
            part.masked_fill_(~self.part_for(tensor).to(part.device), 0)
            return
        bits = in_memory_order.view(-1).view(integer)
        key = (placement(tensor), order, part.device)
        if key not in self._prepared:  # gradients may have another order than weights
            self._prepared[key] = self.part_for(tensor).to(part.device).permute(order).contiguous().view(-1)
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
            self._prepared[key] = torch.empty_like(part, dtype=integer).copy_(self.part_for(tensor))
        return self._prepared[key]

    def part_for(self, tensor: Tensor) -> Tensor:
        """Return what of the mask belongs to the part of ``tensor`` that lies on this process."""
        return own_part(spread_like(self.mask, tensor))


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers put around it: ``module.`` and ``_orig_mod.``.

    >>> plain_name("module._orig_mod.features._orig_mod.0.weight")
    'features.0.weight'
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def match(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Find the parameter of each mask. Tied weights are one weight, whichever of its names is used.

    The mask of a weight that is computed (weight norm) belongs to the parameter that carries its zeros.

    Args:
        masks: parameter name -> bool of the parameter's shape. Names match with or without ``module.`` and
            ``_orig_mod.`` on either side; an exact match comes first.
        model: any module, wrapped, compiled or plain.

    Returns:
        The parameter's name in the model -> (parameter, mask), in the order of the masks.

    Raises:
        MaskError: naming every mask that fits no parameter, has another shape, or contradicts another one.
    """
    reshard(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    computed = dict(carriers(model))
    matched = match_names(masks, parameters | {name: parameters[key] for name, key in computed.items()})
    for name in computed.keys() & matched.keys():
        if not stays_finite(model, name, computed[name], matched[name][1]):
            raise MaskError(
                f"under its mask {name!r} is computed as 0 / 0, since an output unit keeps no connection; "
                "keep one of each, for example with scope='unit'"
            )
    return matched


def match_names(masks: Mapping[str, Tensor], parameters: Mapping[str, _Weight]) -> dict[str, tuple[_Weight, Tensor]]:
    """Find the weight of each mask in a state dict; as ``match`` does in a model."""
    by_plain_name: dict[str, dict[int, str]] = {}
    for name, parameter in parameters.items():
        by_plain_name.setdefault(plain_name(name), {}).setdefault(id(parameter), name)
    found: dict[int, tuple[str, Tensor]] = {}
    problems = []
    for name, mask in masks.items():
        candidates = [name] if name in parameters else list(by_plain_name.get(plain_name(name), {}).values())
        if len(candidates) != 1:
            problems.append(_not_found(name, candidates, parameters))
            continue
        parameter = parameters[candidates[0]]
        first, known = found.setdefault(id(parameter), (candidates[0], mask))
        if is_lazy(parameter):
            problems.append(f"{name!r} has no shape yet, run one batch through the model first")
        elif parameter.shape != mask.shape:
            problems.append(f"{name!r} has a mask of {list(mask.shape)} for a weight of {list(parameter.shape)}")
        elif not parameter.is_floating_point():
            problems.append(f"{name!r} is {parameter.dtype}, which cannot be masked")
        elif not same_mask(known, mask):
            problems.append(f"{name!r} and {first!r} are one weight with two different masks")
    if problems:
        raise MaskError(
            f"masks do not fit the model: {'; '.join(problems)}; compare their names with those of the weights"
        )
    return {name: (parameters[name], mask) for name, mask in found.values()}


def _not_found(name: str, candidates: list[str], parameters: Iterable[str]) -> str:
    if candidates:
        return f"{name!r} could be {' or '.join(candidates)}"
    module, dot, last = name.rpartition(".")
    if any(known.startswith(f"{module}{dot}parametrizations.{last}.") for known in parameters):
        return (
            f"{name!r} is computed from other parameters, whose zeros are not its own; call "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    return f"no parameter {name!r}"


def same_mask(first: Tensor, second: Tensor) -> bool:
    """Say whether two masks are equal, wherever they are."""
    return first is second or (first.shape == second.shape and torch.equal(first, second.to(first.device)))
