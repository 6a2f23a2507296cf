"""Write and read weights: dense state dicts, and sparse checkpoints that store only kept weights.

A sparse checkpoint is a packed mask file (see ``prunekit.masks.files``) whose header has the kind "sparse". For each
masked weight it has ``<name>_mask`` and, as ``<name>_values``, a vector of the kept values in row-major order. Every
other tensor of the state dict is stored unchanged. ``load_masks`` reads its masks. This module must not know models,
optimisers or training, and unpickles only what ``prunekit.files.torch_files`` allows.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from prunekit.errors import CheckpointError, MaskError
from prunekit.files.atomic import write_atomically
from prunekit.files.headers import check_header, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header, some
from prunekit.files.torch_files import is_torch_file, load_state_dict
from prunekit.masks import files as mask_files
from prunekit.masks.masks import Masks
from prunekit.masks.matching import match_names

_KINDS = ("weights", "sparse")

# Bits are moved as integers, which preserves the payload of NaN and the sign of -0.0.
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save_sparse(path: str | os.PathLike[str], weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Write a state dict atomically, with only the kept values of masked weights. ``load_weights`` reads it.

        save_sparse("sparse.safetensors", model.state_dict(), masks)
        model.load_state_dict(load_weights("sparse.safetensors"))

    Kept values and all other tensors are read back with the same bits; dropped weights are +0.0. The same weights and
    masks give the same bytes.

    Args:
        path: the file to write, ending in ``.safetensors`` by convention.
        weights: a state dict. Masks match its names as in ``Masks.apply``; a tied weight is masked under all its names.
        masks: at least one mask.

    Raises:
        CheckpointError: the file cannot be written, or a tensor in ``weights`` has a name that the format needs.
        MaskError: masks fit no weight; all of them are listed.
    """
    write_atomically(path, encode_sparse(weights, masks))


def encode_sparse(weights: Mapping[str, Tensor], masks: Masks) -> bytes:
    """Return the bytes that ``save_sparse`` writes.

    Raises:
        CheckpointError: a tensor in ``weights`` has a name that the format needs.
        MaskError: masks fit no weight; all of them are listed.
    """
    matched = _with_tied(match_names(masks.tensors, weights), weights)
    arrays, metadata = mask_files.layout({name: mask for name, (_, mask) in matched.items()}, masks.info, kind="sparse")
    stored = {key: torch.from_numpy(array) for key, array in arrays.items()}
    for name, (weight, mask) in matched.items():
        stored[f"{name}_values"] = _bits(weight)[mask.cpu()].view(weight.dtype)
    others = {name: tensor for name, tensor in weights.items() if name not in matched}
    if clash := sorted(stored.keys() & others.keys()):
        raise CheckpointError(
            f"cannot write a sparse checkpoint: the format needs the names {some(clash)}; rename these weights"
        )
    return safetensors.torch.save(stored | plain_copies(others), metadata)


def _with_tied(
    matched: Mapping[str, tuple[Tensor, Tensor]], weights: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Add the other names of tied weights: stored dense, they would restore dropped weights on loading."""
    masks = {place: mask for weight, mask in matched.values() if (place := _place(weight))}
    tied = {name: (weight, masks[place]) for name, weight in weights.items() if (place := _place(weight)) in masks}
    return tied | dict(matched)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return the memory location of a tensor's values, or an empty tuple if it has no memory."""
    pointer = tensor.data_ptr()
    return (pointer, tensor.shape, tensor.stride()) if pointer else ()


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor]) -> None:
    """Write a state dict atomically as plain safetensors.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_atomically(path, encode_weights(weights))


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Return the bytes that ``save_weights`` writes."""
    return safetensors.torch.save(plain_copies(weights))


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read weights from a sparse checkpoint, plain safetensors, or a state dict of ``torch.save``.

        model.load_state_dict(load_weights("sparse.safetensors"))

    Returns:
        A state dict of dense tensors, on the CPU.

    Raises:
        CheckpointError: the file has no weights or is damaged; the message names the file and the problem.
    """
    path = Path(path)
    refuse_other_kinds(path, _KINDS, CheckpointError)
    if is_torch_file(path):
        return load_state_dict(path, CheckpointError)
    try:
        with open_tensors(path, CheckpointError) as file:
            header = read_header(file, path, CheckpointError)
            if header is None:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            check_header(header, _KINDS, path, CheckpointError)
            return _read_sparse(file, header, path)
    except MaskError as error:
        raise CheckpointError(str(error)) from error


def _read_sparse(file: Any, header: dict[str, Any], path: Path) -> dict[str, Tensor]:
    masks, _ = mask_files.read_own(file, header, path)
    keys = set(file.keys())
    if missing := sorted({f"{name}_values" for name in masks} - keys):
        raise CheckpointError(f"{path}: {some(missing)} is missing; the file is damaged, write it again")
    sparse = {f"{name}_{part}" for name in masks for part in ("mask", "values")}
    if twice := sorted(masks.keys() & (keys - sparse)):
        raise CheckpointError(f"{path}: has both a sparse and a dense {some(twice)}; write the file again")
    weights = {key: file.get_tensor(key) for key in sorted(keys - sparse)}
    for name, mask in masks.items():
        values, kept = file.get_tensor(f"{name}_values"), header["layers"][name]["kept"]
        if list(values.shape) != [kept] or not values.is_floating_point():
            raise CheckpointError(
                f"{path}: {name}_values is {values.dtype} {list(values.shape)}, expected {kept} kept weights; "
                "write the file again"
            )
        bits = _bits(values)
        dense = torch.zeros(mask.shape, dtype=bits.dtype)
        dense[mask] = bits
        weights[name] = dense.view(values.dtype)
    return weights


def plain_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU without shared memory, which safetensors refuses to write (tied weights)."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(_INTEGER[tensor.element_size()])


def check_weights(weights: Mapping[str, Tensor], network: nn.Module, path: str | Path | None, advice: str) -> None:
    """Check that a state dict has the names and shapes of a network.

    Args:
        weights: the state dict.
        network: the network; it may be on the device "meta".
        path: the file it was read from, for the message.
        advice: the next step, for the message.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    expected = network.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not in the network" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)}, but {list(tensor.shape)} in the network"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{path}: its weights do not fit the network: {some(problems)}; {advice}")
