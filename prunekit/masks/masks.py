"""The masks of a network: apply, hold, combine, compare, save and load them.

This module knows models and optimisers of PyTorch; it must not know criteria, schedules, tasks or the engine.
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
from prunekit.masks.overlap import MaskOverlap, overlap, pair_masks
from prunekit.masks.reparametrized import carriers
from prunekit.masks.zeroing import MaskApplier


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model by name; for a computed weight, the parameter that carries its zeros."""
    reshard(model)
    parameters = dict(model.named_parameters())
    plain: dict[str, Tensor] = {
        name: parameter for name, parameter in parameters.items() if "parametrizations." not in name
    }
    return plain | {name: parameters[key] for name, key in carriers(model)}


def _copy(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(mapping)


@attrs.frozen(eq=False, repr=False)
class Masks:
    """The masks of a network: which weights are kept.

    >>> model = nn.Linear(2, 2)
    >>> masks = Masks({"weight": torch.tensor([[True, False], [True, True]])})
    >>> masks.density()
    0.75
    >>> masks.apply(model)  # sets the dropped weight to 0.0
    >>> with masks.hold(model, torch.optim.SGD(model.parameters(), lr=0.1)):
    ...     pass  # train as usual: after every step, the dropped weight is exactly 0.0
    >>> ~masks & masks
    <Masks of 1 weights, density 0>

    Masks are immutable: operations return new ones. Two are equal if their names, shapes and bits are; ``info`` is not
    compared.

    Attributes:
        tensors: parameter name -> bool of the parameter's shape, True = keep.
        info: facts about the masks, as JSON values: criterion, schedule, seed, requested density of each layer.

    Raises:
        MaskError: a tensor is not a dense bool tensor, or is sharded.
    """

    tensors: Mapping[str, Tensor] = attrs.field(converter=_copy)
    info: Mapping[str, Any] = attrs.field(factory=dict, converter=_copy)

    def __attrs_post_init__(self) -> None:
        for name, mask in self.tensors.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided:
                found = f"{mask.dtype} {mask.layout}" if isinstance(mask, Tensor) else type(mask).__name__
                raise MaskError(f"mask of {name!r} is {found}, expected a dense torch.bool tensor; try mask != 0")
            if is_sharded(mask):
                raise MaskError(f"mask of {name!r} is sharded over processes; pass mask.full_tensor() instead")

    @classmethod
    def from_zeros(cls, model: nn.Module | Mapping[str, Tensor]) -> Self:
        """Return the masks of a pruned model, or its state dict, in which weights of exactly zero are dropped.

        Every floating-point parameter with at least two dimensions gets a mask; biases and normalisation, where zeros
        are ordinary values, do not. Tied weights get one mask in a model, and one for each name in a state dict. In a
        model, a computed weight (weight norm) gets a mask, and the parameters it is computed from do not.

        Args:
            model: a module, or a state dict.

        Raises:
            MaskError: a parameter has no values yet (lazy, or on "meta").
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

        Args:
            model: a module, wrapped, compiled or plain, or a state dict.

        Raises:
            MaskError: names or shapes do not fit; all of them are listed, and nothing is changed.
        """
        matched = match(self.tensors, model) if isinstance(model, nn.Module) else match_names(self.tensors, model)
        for weight, mask in matched.values():
            MaskApplier(mask)(weight)

    def hold(self, model: nn.Module, optimizer: Optimizer) -> "Held[Masks]":
        """Return a context in which any training loop keeps the dropped weights at exactly 0.0; see ``Held``.

            with masks.hold(model, optimizer):
                train(model, optimizer)

        Args:
            model: the model to train.
            optimizer: the optimiser that steps its parameters.

        Raises:
            MaskError: the masks do not fit the model.
        """
        return Held(self, model, optimizer)

    def save(self, path: str | os.PathLike[str], *, packed: bool = True) -> None:
        """Write a mask file atomically; equal masks and info give equal bytes. ``load_masks`` reads it.

            masks.save("masks.safetensors")

        Args:
            path: the file to write, ending in ``.safetensors`` by convention.
            packed: store eight weights per byte instead of plain bools; see ``prunekit.masks.files``.

        Raises:
            CheckpointError: the file cannot be written.
            MaskError: there are no masks, or ``info`` cannot be written as JSON.
        """
        write_atomically(path, mask_files.encode(self.tensors, self.info, packed=packed))

    def density(self) -> float:
        """Return kept / total over all masked weights; 1.0 if there are none."""
        return _density(
            sum(int(mask.count_nonzero()) for mask in self.tensors.values()),
            sum(mask.numel() for mask in self.tensors.values()),
        )

    def densities(self) -> dict[str, float]:
        """Return kept / total of each mask, by parameter name."""
        return {name: _density(int(mask.count_nonzero()), mask.numel()) for name, mask in self.tensors.items()}

    def compare(self, other: "Masks") -> dict[str, MaskOverlap]:
        """Return the overlap with other masks of the same weights, by parameter name.

            masks.compare(other)["fc.weight"].overlap  # the Jaccard index, in [0, 1]

        Raises:
            MaskError: names or shapes differ; all of them are listed.
        """
        return {name: overlap(*pair) for name, pair in pair_masks(self.tensors, other.tensors).items()}

    def __and__(self, other: "Masks") -> "Masks":
        """Keep the weights that both keep."""
        return _combine(self, other, torch.logical_and)

    def __or__(self, other: "Masks") -> "Masks":
        """Keep the weights that either keeps."""
        return _combine(self, other, torch.logical_or)

    def __sub__(self, other: "Masks") -> "Masks":
        """Keep the weights that these keep and the others drop."""
        return _combine(self, other, torch.gt)

    def __invert__(self) -> "Masks":
        """Keep the weights that these drop."""
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


def _combine(first: Masks, second: Masks, operation: Callable[[Tensor, Tensor], Tensor]) -> Masks:
    pairs = pair_masks(first.tensors, second.tensors)
    return Masks({name: operation(mask, other) for name, (mask, other) in pairs.items()})


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """Read masks from a file: one of prunekit's, or one in which other tools store masks.

        masks = load_masks("masks.safetensors")
        masks.apply(model)

    Args:
        path: a safetensors file or a state dict of ``torch.save``; for accepted names see ``prunekit.masks.foreign``.

    Raises:
        MaskError: the file is not a valid mask file; the message names the file and the problem.
    """
    return Masks(*mask_files.read(Path(path)))


def _density(kept: int, total: int) -> float:
    return kept / total if total else 1.0
