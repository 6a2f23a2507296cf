"""Weights with at most two of every four kept along the inputs (2:4), packed, as files and as torch's sparse tensors.

A packed weight has half the values, row by row, and for each group of four inputs the two places they stand at. The
file is the same for every device; NVIDIA's sparse tensor cores need a layout of their own, which torch makes when the
file is loaded. torch itself keeps two of four whatever is there, so the pattern is checked here first.
This module must not know masks or how networks are exported.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from prunekit.distributed.devices import pick_device
from prunekit.errors import CheckpointError, ConfigError
from prunekit.files.headers import check_header, encode_metadata, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header, some
from prunekit.masks.weight_files import check_weights

KIND = "semi-structured"
ROWS, COLUMNS = 32, 64
"""Outputs and inputs that every kernel of torch takes in half precision are multiples of these (CUTLASS; cuSPARSELt
takes multiples of 16)."""

_GROUP, _KEPT = 4, 2
_DTYPES = {torch.float16, torch.bfloat16}  # in float32 torch's kernels keep one of two, not two of four


def weight_problem(weight: Tensor) -> str:
    """Say why a linear layer's weight ``[outputs, inputs]`` cannot run as 2:4; "" if it can."""
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return f"is {rows} x {columns}, expected a multiple of {ROWS} x {COLUMNS}"
    kept = int((weight.reshape(rows, -1, _GROUP) != 0).sum(2).max()) if weight.numel() else 0
    return f"keeps {kept} of four inputs, expected two" if kept > _KEPT else ""


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight that has at most two of every four.

    Args:
        weight: ``[outputs, inputs]``, inputs a multiple of 8.

    Returns:
        The values ``[outputs, inputs / 2]``, and their places, uint8 ``[outputs, inputs / 8]``: each byte holds two
        groups of four inputs, the first in its low half; of a half, the low two bits are the first place, 0 to 3, and
        the high two the second, which is greater.
    """
    groups = weight.reshape(len(weight), -1, _GROUP)
    # Stable: first what is kept, in its order, then zeros to fill up.
    places = (groups == 0).to(torch.uint8).argsort(dim=2, stable=True)[..., :_KEPT].sort(2).values
    halves = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return groups.gather(2, places).flatten(1), halves[:, ::2] | halves[:, 1::2] << 4


def unpack(values: Tensor, places: Tensor) -> Tensor:
    """Return the weight ``[outputs, inputs]`` that ``pack`` took; what is not kept is +0.0.

    Raises:
        ValueError: places that ``pack`` does not give.
    """
    halves = torch.stack((places & 15, places >> 4), 2).flatten(1)
    both = torch.stack((halves & 3, halves >> 2), 2).long()
    if bool((both[..., 0] >= both[..., 1]).any()):
        raise ValueError("two values of a group stand at one place, or in no order")
    groups = values.new_zeros(len(values), halves.shape[1], _GROUP)
    return groups.scatter_(2, both, values.reshape(both.shape)).flatten(1)


def encode(weights: Mapping[str, Tensor], packed: set[str]) -> bytes:
    """Return the file of a state dict: packed weights as ``<name>_values`` and ``<name>_places``, others as they are.

    Args:
        weights: a state dict.
        packed: names of those that ``weight_problem`` has nothing against.
    """
    tensors = {}
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous().clone()  # safetensors takes no two tensors of one memory
        if name in packed:
            tensors[f"{name}_values"], tensors[f"{name}_places"] = pack(plain)
        else:
            tensors[name] = plain
    return safetensors.torch.save(tensors, encode_metadata(KIND, {"packed": sorted(packed)}))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Read a semi-structured file.

    Returns:
        A dense state dict, and the names of the weights in it that are 2:4.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = Path(path)
    refuse_other_kinds(path, (KIND,), CheckpointError)
    with open_tensors(path, CheckpointError) as file:
        header = check_header(read_header(file, path, CheckpointError), (KIND,), path, CheckpointError)
        keys, packed = set(file.keys()), header.get("packed")
        if not isinstance(packed, list) or not all(isinstance(name, str) for name in packed):
            raise CheckpointError(f"{path}: does not say which weights are packed; write the file again")
        parts = {f"{name}_{part}" for name in packed for part in ("values", "places")}
        if odd := sorted((parts - keys) | (set(packed) & keys)):
            raise CheckpointError(f"{path}: {some(odd)} are missing, or there twice; write the file again")
        weights = {key: file.get_tensor(key) for key in sorted(keys - parts)}
        for name in packed:
            weights[name] = _unpacked(file, name, path)
    return weights, packed


def _unpacked(file: Any, name: str, path: Path) -> Tensor:
    values, places = (file.get_tensor(f"{name}_{part}") for part in ("values", "places"))
    fits = values.dim() == places.dim() == 2 and list(values.shape) == [len(places), 4 * places.shape[1]]  # noqa: PLR2004
    if not fits or places.dtype != torch.uint8 or not values.is_floating_point():
        raise CheckpointError(
            f"{path}: {name} has values {values.dtype} {list(values.shape)} and places {places.dtype} "
            f"{list(places.shape)}, expected floats [outputs, inputs / 2] and uint8 [outputs, inputs / 8]"
        )
    try:
        return unpack(values, places)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error}; the file is damaged, write it again") from error


def load_semi_structured(
    path: str | os.PathLike[str],
    network: nn.Module,
    device: str = "cuda",
    dtype: torch.dtype = torch.float16,
) -> nn.Module:
    """Load a semi-structured file into a network, whose 2:4 layers then run on sparse tensor cores.

    Args:
        path: the file.
        network: of the class that was exported; it is changed: moved, and its floating-point tensors are converted.
        device: a CUDA device.
        dtype: ``torch.float16`` or ``torch.bfloat16``; inputs must have it, too.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: naming the file and what is wrong with it, or what does not fit the network.
        ConfigError: no CUDA device, or another dtype.
    """
    if dtype not in _DTYPES:
        raise ConfigError(
            f"2:4 kernels keep two of four in float16 and bfloat16 alone, not in {dtype}; take one of them"
        )
    path = Path(path)
    weights, packed = read(path)
    check_weights(weights, network, path, "give the network that was exported")
    layers = _layers(network, weights, packed, path)
    if not device.startswith("cuda") or not torch.cuda.is_available():
        raise ConfigError(
            f"2:4 kernels need a CUDA device, and {device!r} is none that is here; "
            "on a CPU, prunekit export --to csr or --to shrunk makes networks that may run faster"
        )
    network.load_state_dict(weights)
    network.to(pick_device(device), dtype).eval()
    for layer in layers:
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return network


def _layers(network: nn.Module, weights: Mapping[str, Tensor], packed: list[str], path: Path) -> list[nn.Linear]:
    """Return the layers of packed weights, checked."""
    layers = []
    for name in packed:
        module = network.get_submodule(name.rpartition(".")[0])
        problem = weight_problem(weights[name])
        if not isinstance(module, nn.Linear) or problem:
            problem = problem or f"is of a {type(module).__name__}, expected a linear layer"
            raise CheckpointError(f"{path}: {name} {problem}; the file is damaged, or of another network")
        layers.append(module)
    return layers
