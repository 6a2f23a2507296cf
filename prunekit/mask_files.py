"""Masks as safetensors files: ours, bit-packed, and what others write.

A file of ours has, for each parameter, one tensor ``<parameter name>_mask``, and one metadata entry,
``prunekit``, a JSON object with sorted keys (several entries would be stored in no fixed order, and the same
masks must give the same bytes):

- ``format``: 1; ``tool``: what wrote it; ``info``: criterion, schedule, seed and whatever else the masks carry;
- ``layers``: parameter name -> ``shape``, ``kept`` (a count, checked on reading) and ``density``;
- ``fingerprint``: SHA-256 of the names and shapes; ``packed``: whether the masks are bits or bools.

A packed mask is the weight as a matrix, first axis x all others, with the bits of each row packed by
``numpy.packbits(axis=-1, bitorder="little")``: ``uint8 [rows, ceil(columns / 8)]``. (Packing the last axis of a
convolution's weight itself would waste most bits of each byte.)

This module must not know models, optimisers or training. It never unpickles, and it takes no memory for
what a header merely claims.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit.errors import MaskError
from prunekit.masking import plain_name

FORMAT = 1
_METADATA = "prunekit"
_HEADER_LIMIT = 32 * 2**20  # a hundred thousand tensors need about 10 MiB; JSON takes many times its size in memory
_MOST_DIMENSIONS = 32
_READABLE = {"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64"}
_UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError)
# The ways others name the mask of ``<module>.weight``; besides ``<module>.weight_mask`` and ``<module>._weight_mask``.
_WEIGHT_ONLY = {"mask", "_mask", "sparsity_mask"}


def encode(masks: Mapping[str, Tensor], info: Mapping[str, Any], *, packed: bool = True) -> bytes:
    """Return the bytes of a mask file; the same masks and info always give the same bytes.

    Args:
        masks: parameter name -> bool of the parameter's shape, True = keep.
        info: what is known of the masks, JSON only.
        packed: eight weights to a byte; else plain bool of the parameter's shape, for readers that know no packing.

    Raises:
        MaskError: when there is no mask, or ``info`` cannot be written as JSON.
    """
    if not masks:
        raise MaskError("there is no mask to write; select weights first")
    arrays, layers = {}, {}
    for name, mask in masks.items():
        array = mask.cpu().contiguous().numpy()
        kept = int(np.count_nonzero(array))
        arrays[f"{name}_mask"] = _pack(array) if packed else array
        layers[name] = {"shape": list(mask.shape), "kept": kept, "density": kept / array.size if array.size else 1.0}
    header = {
        "format": FORMAT,
        "tool": f"prunekit {_tool_version()}",
        "info": dict(info),
        "layers": layers,
        "fingerprint": fingerprint({name: tuple(mask.shape) for name, mask in masks.items()}),
        "packed": packed,
    }
    try:
        text = json.dumps(header, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(f"info of masks cannot be written as JSON: {error}; use numbers, texts and lists") from error
    return safetensors.numpy.save(arrays, {_METADATA: text})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the masks of a safetensors file: ours, or one with masks as others name and store them.

    Accepted are bool, integer and float tensors of zeros and ones, named ``<module>.weight_mask``,
    ``<module>._weight_mask``, ``<module>.mask``, ``<module>._mask`` or ``<module>.sparsity_mask``, and
    ``<parameter>_mask`` where ``<parameter>_orig`` is there too; prefixes ``module.`` and ``_orig_mod.``
    are taken off. Other tensors are left alone.

    Returns:
        Parameter name -> bool mask, and the info of a file of ours (of others: nothing).

    Raises:
        MaskError: naming the file, and the key where it is one tensor that is wrong.
    """
    try:
        _check_header_length(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
            return _read_foreign(file, path) if text is None else _read_own(file, _parse_header(text, path), path)
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such mask file; check the path") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise MaskError(f"{path}: not a readable safetensors file: {reason}; write or download it again") from error


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the SHA-256 of parameter names and shapes, whatever their order: the network that masks are for."""
    text = json.dumps({name: list(shape) for name, shape in shapes.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _tool_version() -> str:
    try:
        return version("prunekit")
    except PackageNotFoundError:
        return "(not installed)"


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))  # noqa: PLR2004 - a matrix


def _packed_shape(shape: tuple[int, ...]) -> list[int]:
    rows, columns = _matrix_shape(shape)
    return [rows, (columns + 7) // 8]


def _pack(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.packbits(mask.reshape(_matrix_shape(mask.shape)), axis=-1, bitorder="little")


def _unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    columns = _matrix_shape(shape)[1]
    bits = np.unpackbits(packed.numpy(), axis=-1, count=columns, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def _check_header_length(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _HEADER_LIMIT:
        raise MaskError(f"{path}: claims a header of {length} bytes, expected at most {_HEADER_LIMIT}; get it again")


def _parse_header(text: str, path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the header and the shapes in it, checked."""
    wrong = f"{path}: the metadata entry {_METADATA!r} is damaged ({{}}); write the file again"
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskError(wrong.format("not JSON")) from error
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise MaskError(wrong.format("no format version"))
    if header["format"] != FORMAT:
        raise MaskError(
            f"{path}: mask format {header['format']}, written by {header.get('tool')!r}, "
            f"but this version reads format {FORMAT}; update prunekit"
        )
    layers = header.get("layers")
    if not isinstance(layers, dict) or not isinstance(header.get("info"), dict):
        raise MaskError(wrong.format("no layers or no info"))
    if not isinstance(header.get("packed"), bool):
        raise MaskError(wrong.format("packed is neither true nor false"))
    shapes = {}
    for name, layer in layers.items():
        shape = layer.get("shape") if isinstance(layer, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise MaskError(wrong.format(f"shape of {name!r}"))
        if len(shape) > _MOST_DIMENSIONS or type(layer.get("kept")) is not int:
            raise MaskError(wrong.format(f"shape or count of {name!r}"))
        shapes[name] = tuple(shape)
    if header.get("fingerprint") != fingerprint(shapes):
        raise MaskError(wrong.format("the fingerprint is not that of its shapes"))
    return header, shapes


def _read_own(
    file: Any, parsed: tuple[dict[str, Any], dict[str, tuple[int, ...]]], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    header, shapes = parsed
    expected = {f"{name}_mask": name for name in shapes}
    odd = sorted(set(expected).symmetric_difference(file.keys()))
    if odd or not expected:
        raise MaskError(f"{path}: the header and the tensors differ in {', '.join(odd) or 'nothing: no mask is there'}")
    masks = {}
    for key, name in sorted(expected.items()):
        entry, shape = file.get_slice(key), shapes[name]
        dtype, stored = ("U8", _packed_shape(shape)) if header["packed"] else ("BOOL", list(shape))
        if entry.get_dtype() != dtype or entry.get_shape() != stored:
            raise MaskError(
                f"{path}: {key} is {entry.get_dtype()} {entry.get_shape()}, expected {dtype} {stored} "
                f"for a weight of {list(shape)}; write the file again"
            )
        if math.prod(shape) == 0:
            mask = torch.zeros(shape, dtype=torch.bool)
        elif header["packed"]:
            mask = _unpack(file.get_tensor(key), shape)
        else:
            mask = _zeros_and_ones(file.get_tensor(key), key, path)
        kept = int(np.count_nonzero(mask.numpy()))
        if kept != header["layers"][name]["kept"]:
            raise MaskError(
                f"{path}: {key} keeps {kept} weights, its header says {header['layers'][name]['kept']}; "
                "the file is damaged, write it again"
            )
        masks[name] = mask
    return masks, header["info"]


def _read_foreign(file: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    masks: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    keys = set(file.keys())
    for key in sorted(keys):
        name = _masked_parameter(key, keys)
        if name is None:
            continue
        if name in masks:
            raise MaskError(f"{path}: {source[name]} and {key} are both masks of {name!r}; leave one of them out")
        dtype = file.get_slice(key).get_dtype()
        if dtype not in _READABLE:
            raise MaskError(
                f"{path}: {key} is {dtype}, expected bool or zeros and ones in {', '.join(sorted(_READABLE))}"
            )
        masks[name], source[name] = _zeros_and_ones(file.get_tensor(key), key, path), key
    if not masks:
        raise MaskError(f"{path}: no mask inside ({len(keys)} other tensors); expected names like 'fc.weight_mask'")
    return masks, {}


def _masked_parameter(key: str, keys: set[str]) -> str | None:
    """Return the name of the parameter that a tensor of someone else's file masks, if it is a mask at all."""
    module, dot, last = key.rpartition(".")
    if last in _WEIGHT_ONLY:
        return plain_name(f"{module}{dot}weight")
    parameter = last.removesuffix("_mask")
    if parameter == last or not ("weight" in parameter or f"{module}{dot}{parameter}_orig" in keys):
        return None  # such as the attention masks that some networks keep as buffers
    return plain_name(f"{module}{dot}{parameter.removeprefix('_')}")


def _zeros_and_ones(tensor: Tensor, key: str, path: Path) -> Tensor:
    """Return a bool copy; bools are looked at as bytes, since a file can hold other bytes than 0 and 1."""
    values = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    mask = values == 1
    if not bool((mask | (values == 0)).all()):
        raise MaskError(f"{path}: {key} has values other than 0 and 1; it is no mask")
    return mask
