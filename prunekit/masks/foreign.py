"""Read masks that other tools store: torch.nn.utils.prune, plain tensors of zeros and ones, compressed-tensors.

The tensors come by name, from any kind of file. This module must not know prunekit's own files, models or training.
"""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import MaskError
from prunekit.files.safetensors_files import some
from prunekit.masks.matching import match_names, plain_name

# Names of the mask of ``<module>.weight`` in other tools, besides ``weight_mask`` and ``_weight_mask``.
_WEIGHT_ONLY = {"mask", "_mask", "sparsity_mask"}
_INTEGRAL = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_READABLE = _INTEGRAL | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_MOST_DIMENSIONS = 32


def read_foreign(keys: Collection[str], tensor: Callable[[str], Tensor], path: Path) -> dict[str, Tensor]:
    """Return the masks among the tensors of a file that prunekit did not write.

    Accepted are bool, integer and float tensors of zeros and ones, named ``<module>.weight_mask``,
    ``<module>._weight_mask``, ``<module>.mask``, ``<module>._mask`` or ``<module>.sparsity_mask``, and
    ``<parameter>_mask`` beside ``<parameter>_orig`` (torch.nn.utils.prune); and the formats sparse-bitmask and
    sparse-24-bitmask of compressed-tensors: ``<module>.bitmask``, ``.compressed`` and ``.shape``. The prefixes
    ``module.`` and ``_orig_mod.`` are removed. Other tensors are ignored.

    Args:
        keys: the names in the file.
        tensor: returns the tensor with a name.
        path: the file, for messages.

    Returns:
        Parameter name -> bool mask.

    Raises:
        MaskError: the file has no masks, or one of them is invalid; the message names the file and the key.
    """
    known = set(keys)
    masks: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key in sorted(known):
        compressed = key.rpartition(".")[2] == "bitmask"
        name = _compressed_parameter(key, known, path) if compressed else _masked_parameter(key, known)
        if name is None:
            continue
        if name in masks:
            raise MaskError(f"{path}: {source[name]} and {key} are both masks of {name!r}; remove one of them")
        masks[name] = _bitmask(key, known, tensor, path) if compressed else zeros_and_ones(tensor(key), key, path)
        source[name] = key
    if not masks:
        raise MaskError(
            f"{path}: no mask inside ({len(known)} other tensors; expected names like 'fc.weight_mask'); if it is a "
            "file of plain weights, load it with prunekit.load_weights, or make masks of its zeros with: "
            "prunekit masks convert --from-zeros"
        )
    return masks


def zeros_and_ones(tensor: Tensor, key: str, path: Path) -> Tensor:
    """Return a bool copy of a tensor of zeros and ones.

    Bool tensors are read as bytes, since a file may hold bytes other than 0 and 1.

    Raises:
        MaskError: the tensor has another dtype, or other values.
    """
    if tensor.dtype not in _READABLE:
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _READABLE))
        raise MaskError(f"{path}: {key} is {tensor.dtype}, expected bool or zeros and ones in {kinds}")
    values = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    mask = values == 1
    if not bool((mask | (values == 0)).all()):
        raise MaskError(f"{path}: {key} has values other than 0 and 1, so it is not a mask")
    return mask


def torch_prune_state(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a model pruned with torch.nn.utils.prune.

    For each mask of ``<parameter>`` it has ``<parameter>_orig``, the unchanged weights, and ``<parameter>_mask`` in
    their dtype. All other tensors keep their names.

    Args:
        masks: parameter name -> bool of the parameter's shape.
        weights: a state dict, possibly in this form already.

    Raises:
        MaskError: masks fit no weight; all of them are listed.
    """
    pruned = {key.removesuffix("_orig") for key in weights if key.endswith("_orig") and f"{key[:-5]}_mask" in weights}
    plain = {
        key.removesuffix("_orig") if key.removesuffix("_orig") in pruned else key: value
        for key, value in weights.items()
        if key.removesuffix("_mask") not in pruned
    }
    matched = match_names(masks, plain)
    state = {name: tensor for name, tensor in plain.items() if name not in matched}
    for name, (weight, mask) in matched.items():
        state |= {f"{name}_orig": weight, f"{name}_mask": mask.to(weight.dtype)}
    return state


def _masked_parameter(key: str, keys: set[str]) -> str | None:
    """Return the name of the parameter that a tensor of another tool's file masks, or ``None`` if it is not a mask."""
    module, dot, last = key.rpartition(".")
    if last in _WEIGHT_ONLY:
        return plain_name(f"{module}{dot}weight")
    parameter = last.removesuffix("_mask")
    if parameter == last or not ("weight" in parameter or f"{module}{dot}{parameter}_orig" in keys):
        return None  # for example an attention mask that a network keeps as a buffer
    return plain_name(f"{module}{dot}{parameter.removeprefix('_')}")


def _compressed_parameter(key: str, keys: set[str], path: Path) -> str | None:
    module = key.removesuffix("bitmask")
    missing = [f"{module}{part}" for part in ("compressed", "shape") if f"{module}{part}" not in keys]
    if len(missing) == 2:  # noqa: PLR2004 - both, so it is some other buffer
        return None
    if missing:
        raise MaskError(f"{path}: {key} comes without {some(missing)}; the file is incomplete, download it again")
    return plain_name(f"{module}weight")


def _bitmask(key: str, keys: set[str], tensor: Callable[[str], Tensor], path: Path) -> Tensor:
    """Read the mask of one weight of compressed-tensors, rows packed along the last axis, low bit first."""
    module = key.removesuffix("bitmask")
    shape = _shape(f"{module}shape", tensor, path)
    bits, expected = tensor(key), [*shape[:-1], (shape[-1] + 7) // 8]
    if bits.dtype != torch.uint8 or list(bits.shape) != expected:
        raise MaskError(
            f"{path}: {key} is {bits.dtype} {list(bits.shape)}, expected {torch.uint8} {expected} "
            f"for a weight of {shape}; download the file again"
        )
    if math.prod(shape) == 0:
        return torch.zeros(shape, dtype=torch.bool)
    unpacked = np.unpackbits(bits.contiguous().numpy(), axis=-1, count=shape[-1], bitorder="little")
    mask = torch.from_numpy(unpacked.view(np.bool_))
    counts = mask.sum(-1)
    stored = tensor(f"{module}compressed").numel()
    if int(counts.sum()) != stored:
        raise MaskError(
            f"{path}: {key} keeps {int(counts.sum())} weights, but {module}compressed has {stored} values; "
            "the file is damaged, download it again"
        )
    offsets = f"{module}row_offsets"
    if offsets in keys and not _same_integers(tensor(offsets), counts.cumsum(0) - counts):
        raise MaskError(f"{path}: {offsets} does not match the counts of {key}; the file is damaged, download it again")
    return mask


def _shape(key: str, tensor: Callable[[str], Tensor], path: Path) -> list[int]:
    stored = tensor(key)
    if stored.dtype not in _INTEGRAL or not 0 < stored.numel() <= _MOST_DIMENSIONS:
        raise MaskError(f"{path}: {key} is {stored.dtype} {list(stored.shape)}, expected the sizes of a weight")
    shape: list[int] = stored.flatten().tolist()
    if min(shape) < 0:
        raise MaskError(f"{path}: {key} is {shape}, expected sizes of at least 0")
    return shape


def _same_integers(first: Tensor, second: Tensor) -> bool:
    return not first.is_floating_point() and first.shape == second.shape and bool((first == second).all())
