"""Write masks as bit-packed safetensors files, and read them and those of other tools.

A mask file of prunekit has one tensor ``<parameter name>_mask`` for each parameter, and after the header (see
``prunekit.files.headers``; the kind is "masks", or "sparse" for a file that also holds weights, see
``prunekit.masks.weight_files``):

- ``info``: criterion, schedule, seed and other facts about the masks;
- ``layers``: parameter name -> ``shape``, ``kept`` (a count, checked on reading) and ``density``;
- ``fingerprint``: SHA-256 of the names and shapes; ``packed``: whether the masks are bits or bools.

A packed mask is the weight as a matrix, first axis x all others, with the bits of each row packed by
``numpy.packbits(axis=-1, bitorder="little")``: ``uint8 [rows, ceil(columns / 8)]``. (Packing the last axis of a
convolution's weight itself would waste most bits of each byte.)

This module must not know models, optimisers or training. It never unpickles, and allocates no memory for sizes that
a header merely claims.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from prunekit.errors import MaskError
from prunekit.files.headers import check_header, damaged, encode_metadata, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header, some
from prunekit.files.torch_files import is_torch_file, load_state_dict
from prunekit.masks.foreign import read_foreign, zeros_and_ones

KINDS = ("masks", "sparse")
_MOST_DIMENSIONS = 32


def encode(masks: Mapping[str, Tensor], info: Mapping[str, Any], *, packed: bool = True) -> bytes:
    """Return the bytes of a mask file; the same masks and info always give the same bytes.

    Args:
        masks: parameter name -> bool of the parameter's shape, True = keep.
        info: facts about the masks, as JSON values.
        packed: store eight weights per byte; else plain bools of the parameter's shape, for readers of other tools.

    Raises:
        MaskError: there are no masks, or ``info`` cannot be written as JSON.
    """
    return safetensors.numpy.save(*layout(masks, info, packed=packed))


def layout(
    masks: Mapping[str, Tensor], info: Mapping[str, Any], *, packed: bool = True, kind: str = "masks"
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return the tensors of a mask file and its metadata; see ``encode``.

    Args:
        masks: parameter name -> bool of the parameter's shape.
        info: facts about the masks, as JSON values.
        packed: store eight weights per byte.
        kind: one of ``KINDS``.

    Raises:
        MaskError: there are no masks, or ``info`` cannot be written as JSON.
    """
    if not masks:
        raise MaskError("no masks to write; select weights first")
    arrays, layers = {}, {}
    for name, mask in masks.items():
        array = mask.cpu().contiguous().numpy()
        kept = int(np.count_nonzero(array))
        arrays[f"{name}_mask"] = _pack(array) if packed else array
        layers[name] = {"shape": list(mask.shape), "kept": kept, "density": kept / array.size if array.size else 1.0}
    content = {
        "info": dict(info),
        "layers": layers,
        "fingerprint": fingerprint({name: tuple(mask.shape) for name, mask in masks.items()}),
        "packed": packed,
    }
    try:
        json.dumps(content["info"], allow_nan=False)
        return arrays, encode_metadata(kind, content)
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(
            f"info of masks cannot be written as JSON: {error}; use numbers, strings, lists and dicts"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the masks from a file written by prunekit or by another tool (see ``prunekit.masks.foreign``).

    Files from other tools may be safetensors files or state dicts saved with ``torch.save``.

    Returns:
        Parameter name -> bool mask, and the info stored with the masks, which is empty for files from
        other tools.

    Raises:
        MaskError: the file is not a valid mask file; the message names the file, and the key of an invalid tensor.
    """
    refuse_other_kinds(path, (*KINDS, "weights"), MaskError)  # other tools' masks lie in files like plain weights
    if is_torch_file(path):
        state = load_state_dict(path, MaskError)
        return read_foreign(state.keys(), state.__getitem__, path), {}
    with open_tensors(path, MaskError) as file:
        header = read_header(file, path, MaskError)
        if header is not None:
            return read_own(file, header, path)
        return read_foreign(file.keys(), file.get_tensor, path), {}


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the SHA-256 of parameter names and shapes, in any order; it identifies the network of the masks."""
    text = json.dumps({name: list(shape) for name, shape in shapes.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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


def _check_header(header: dict[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a header, after checking it."""
    check_header(header, KINDS, path, MaskError)
    wrong = damaged(path)
    layers = header.get("layers")
    if not isinstance(layers, dict) or not isinstance(header.get("info"), dict):
        raise MaskError(wrong.format("layers or info is missing or invalid"))
    if not isinstance(header.get("packed"), bool):
        raise MaskError(wrong.format("packed is neither true nor false"))
    shapes = {}
    for name, layer in layers.items():
        shape = layer.get("shape") if isinstance(layer, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise MaskError(wrong.format(f"the shape of {name!r} is missing or invalid"))
        if len(shape) > _MOST_DIMENSIONS or type(layer.get("kept")) is not int:
            raise MaskError(wrong.format(f"the shape or the count of {name!r} is invalid"))
        shapes[name] = tuple(shape)
    if header.get("fingerprint") != fingerprint(shapes):
        raise MaskError(wrong.format("the fingerprint does not match its shapes"))
    return shapes


def read_own(file: Any, header: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the masks and the info of an open mask file of prunekit.

    Raises:
        MaskError: header and tensors do not match what ``encode`` writes.
    """
    shapes = _check_header(header, path)
    expected = {f"{name}_mask": name for name in shapes}
    keys = set(file.keys())
    odd = sorted(expected.keys() - keys if header["kind"] == "sparse" else expected.keys() ^ keys)
    if odd or not expected:
        raise MaskError(f"{path}: the header and the tensors do not match: {some(odd) or 'there are no masks'}")
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
            mask = zeros_and_ones(file.get_tensor(key), key, path)
        kept = int(np.count_nonzero(mask.numpy()))
        if kept != header["layers"][name]["kept"]:
            raise MaskError(
                f"{path}: {key} keeps {kept} weights, but the header has {header['layers'][name]['kept']}; "
                "the file is damaged, write it again"
            )
        masks[name] = mask
    return masks, header["info"]
