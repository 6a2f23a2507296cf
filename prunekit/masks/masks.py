"""Masks: which weights of a network stay, and everything one can do with that.

Apply them, hold them in anyone's training loop, combine, compare, save and load them. This module knows
models and optimisers of PyTorch; it must not know criteria, schedules, tasks or the engine.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from prunekit.distributed.dtensor import full_tensor, is_sharded, reshard
from prunekit.errors import MaskError
from prunekit.files.atomic import write_atomically
from prunekit.masks import files as mask_files
from prunekit.masks.holding import Held
from prunekit.masks.matching import match, match_names, same_mask
from prunekit.masks.reparametrized import carriers
from prunekit.masks.zeroing import MaskApplier


@attrs.frozen
class MaskOverlap:
    """How two masks of one weight (or of a whole network) meet: counts of weights.

    Attributes:
        both: kept by both.
        only_first: kept by the first alone.
        only_second: kept by the second alone.
        neither: kept by none.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def overlap(self) -> float:
        """Kept by both / kept by either, in [0, 1]; 1 where nothing is kept (the Jaccard index)."""
        either = self.both + self.only_first + self.only_second
        return self.both / either if either else 1.0

    @property
    def hamming(self) -> int:
        """Weights on which the two differ."""
        return self.only_first + self.only_second


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name; of those that a weight is computed from, the one that carries its zeros."""
    reshard(model)
    parameters = dict(model.named_parameters())
    whole: dict[str, Tensor] = {
        name: parameter for name, parameter in parameters.items() if "parametrizations." not in name
    }
    return whole | {name: parameters[key] for name, key in carriers(model)}


def _copy(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(mapping)


@attrs.frozen(eq=False, repr=False)
class Masks:
    """The masks of a network. Never changed in place: what changes masks returns new ones.

    Two are equal when their names, shapes and bits are; ``info`` does not count.

    Attributes:
        tensors: parameter name -> bool of the parameter's shape, True = keep.
        info: what is known of them, JSON only: criterion, schedule, seed, density asked for per layer.

    Raises:
        MaskError: when a tensor is no dense bool tensor.
    """

    tensors: Mapping[str, Tensor] = attrs.field(converter=_copy)
    info: Mapping[str, Any] = attrs.field(factory=dict, converter=_copy)

    def __attrs_post_init__(self) -> None:
        for name, mask in self.tensors.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided:
                found = f"{mask.dtype} {mask.layout}" if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"mask of {name!r} is {found}, expected a dense torch.bool tensor; try mask != 0")
            if is_sharded(mask):
                raise MaskError(f"mask of {name!r} is spread over processes; give the whole, mask.full_tensor()")

    @classmethod
    def from_zeros(cls, model: nn.Module | Mapping[str, Tensor]) -> Self:
        """Read the masks off a model, or its state dict: what is exactly zero is dropped.

        Every floating-point parameter with at least two dimensions gets a mask; biases and norms, where zeros mean
        nothing, get none. Tied weights get one in a model, one each in a state dict. In a model, what a weight is
        computed from (weight norm) gets none, but the weight does.

        Raises:
            MaskError: naming a parameter that has no values yet.
        """
        weights = model if isinstance(model, Mapping) else _weights(model)
        for name, weight in weights.items():
            if is_lazy(weight):
                raise MaskError(f"{name!r} has no shape yet; run one batch through the model first")
            if weight.is_meta:
                raise MaskError(f"{name!r} is on the device 'meta' and has no values; load the weights first")
        prunable = {name: weight for name, weight in weights.items() if weight.dim() > 1 and weight.is_floating_point()}
        return cls({name: full_tensor(weight) != 0 for name, weight in prunable.items()})

    def apply(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Set the dropped weights of a model, or of a state dict, to 0.0, in place.

        Raises:
            MaskError: listing every name and shape that does not fit; then nothing is changed.
        """
        matched = match(self.tensors, model) if isinstance(model, nn.Module) else match_names(self.tensors, model)
        for weight, mask in matched.values():
            MaskApplier(mask)(weight)

    def hold(self, model: nn.Module, optimizer: Optimizer) -> "Held[Masks]":
        """Hold the masks through training, ``with masks.hold(model, optimizer): ...``; see ``Held``."""
        return Held(self, model, optimizer)

    def save(self, path: str | os.PathLike[str], *, packed: bool = True) -> None:
        """Write a mask file (see ``prunekit.masks.files``), whole or not at all; equal masks give equal bytes.

        Args:
            path: where to; by custom it ends in ``.safetensors``.
            packed: eight weights to a byte; else plain bool.

        Raises:
            CheckpointError: when the file cannot be written.
            MaskError: when there is no mask, or ``info`` is not JSON.
        """
        write_atomically(path, mask_files.encode(self.tensors, self.info, packed=packed))

    def density(self) -> float:
        """Return kept / total over all masked weights, 1.0 where there are none."""
        return _density(
            sum(int(mask.count_nonzero()) for mask in self.tensors.values()),
            sum(mask.numel() for mask in self.tensors.values()),
        )

    def densities(self) -> dict[str, float]:
        """Return kept / total of each mask."""
        return {name: _density(int(mask.count_nonzero()), mask.numel()) for name, mask in self.tensors.items()}

    def compare(self, other: "Masks") -> dict[str, MaskOverlap]:
        """Compare with other masks of the same weights, weight by weight.

        Raises:
            MaskError: listing the names and shapes in which they differ.
        """
        result = {}
        for name, (first, second) in self._pairs(other).items():
            both, kept, other_kept = (int(mask.count_nonzero()) for mask in (first & second, first, second))
            neither = first.numel() - kept - other_kept + both
            result[name] = MaskOverlap(both, kept - both, other_kept - both, neither)
        return result

    def __and__(self, other: "Masks") -> "Masks":
        """Keep what both keep."""
        return self._combine(other, torch.logical_and)

    def __or__(self, other: "Masks") -> "Masks":
        """Keep what either keeps."""
        return self._combine(other, torch.logical_or)

    def __sub__(self, other: "Masks") -> "Masks":
        """Keep what these keep and the others drop."""
        return self._combine(other, torch.gt)

    def __invert__(self) -> "Masks":
        """Keep what these drop."""
        return Masks({name: ~mask for name, mask in self.tensors.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        names = self.tensors.keys()
        return names == other.tensors.keys() and all(
            same_mask(self.tensors[name], other.tensors[name]) for name in names
        )

    __hash__ = None  # type: ignore[assignment] # tensors have no hash by value

    def __repr__(self) -> str:
        return f"<Masks of {len(self.tensors)} weights, density {self.density():.4g}>"

    def _combine(self, other: "Masks", operation: Callable[[Tensor, Tensor], Tensor]) -> "Masks":
        return Masks({name: operation(first, second) for name, (first, second) in self._pairs(other).items()})

    def _pairs(self, other: "Masks") -> dict[str, tuple[Tensor, Tensor]]:
        names = sorted(self.tensors.keys() ^ other.tensors.keys())
        problems = [f"{name!r} is only in one of them" for name in names]
        pairs = {
            name: (mask, other.tensors[name].to(mask.device))
            for name, mask in self.tensors.items()
            if name in other.tensors
        }
        problems += [
            f"{name!r} is {list(first.shape)} and {list(second.shape)}"
            for name, (first, second) in pairs.items()
            if first.shape != second.shape
        ]
        if problems:
            raise MaskError(f"masks of different networks cannot be combined: {'; '.join(problems)}")
        return pairs


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """Read a mask file of ours, or a safetensors file with masks under the names that others use.

    Raises:
        MaskError: naming the file and what is wrong with it.
    """
    return Masks(*mask_files.read(Path(path)))


def _density(kept: int, total: int) -> float:
    return kept / total if total else 1.0
