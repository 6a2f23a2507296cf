"""Pack 2:4 weights (at most two of every four inputs kept), store them, and load them as torch's sparse tensors.

A packed weight has half the values, row by row, and the two positions they have in each group of four inputs. The file
is the same for every device; NVIDIA's sparse tensor cores need their own layout, which torch creates at loading. torch
silently keeps two of four in any weight, so the pattern is checked here first.
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
"""Outputs and inputs must be multiples of these for all half-precision kernels of torch (CUTLASS; cuSPARSELt accepts
multiples of 16)."""

_GROUP, _KEPT = 4, 2
_DTYPES = {torch.float16, torch.bfloat16}  # in float32 torch's kernels keep one of two, not two of four


def weight_problem(weight: Tensor) -> str:
    """Return why the weight ``[outputs, inputs]`` of a linear layer cannot run as 2:4; "" if it can."""
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return f"is {rows} x {columns}, expected a multiple of {ROWS} x {COLUMNS}"
    kept = int((weight.reshape(rows, -1, _GROUP) != 0).sum(2).max()) if weight.numel() else 0
    return f"keeps {kept} of four inputs, expected two" if kept > _KEPT else ""


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a weight that keeps at most two of every four inputs.

    Args:
        weight: ``[outputs, inputs]``, inputs a multiple of 8.

    Returns:
        The values ``[outputs, inputs / 2]``, and their positions, uint8 ``[outputs, inputs / 8]``: each byte holds two
        groups of four inputs, the first in its low half. The low two bits of a half are the first position, 0 to 3,
        and the high two bits the second, which is greater.
    """
    groups = weight.reshape(len(weight), -1, _GROUP)
    # Stable: kept values first, in their order, then zeros as padding.
    places = (groups == 0).to(torch.uint8).argsort(dim=2, stable=True)[..., :_KEPT].sort(2).values
    halves = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
    return groups.gather(2, places).flatten(1), halves[:, ::2] | halves[:, 1::2] << 4


def unpack(values: Tensor, places: Tensor) -> Tensor:
    """Return the dense weight ``[outputs, inputs]`` of packed values; dropped weights are +0.0.

    Raises:
        ValueError: positions that ``pack`` never returns.
    """
    halves = torch.stack((places & 15, places >> 4), 2).flatten(1)
    both = torch.stack((halves & 3, halves >> 2), 2).long()
    if bool((both[..., 0] >= both[..., 1]).any()):
        raise ValueError("the two positions of a group are equal or descending")
    groups = values.new_zeros(len(values), halves.shape[1], _GROUP)
    return groups.scatter_(2, both, values.reshape(both.shape)).flatten(1)


def encode(weights: Mapping[str, Tensor], packed: set[str]) -> bytes:
    """Encode a state dict: packed weights as ``<name>_values`` and ``<name>_places``, other tensors unchanged.

    Args:
        weights: a state dict.
        packed: names of the weights to pack; ``weight_problem`` must return "" for each.
    """
    tensors = {}
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
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
        CheckpointError: the file cannot be read or is damaged.
    """
    path = Path(path)
    refuse_other_kinds(path, (KIND,), CheckpointError)
    with open_tensors(path, CheckpointError) as file:
        header = check_header(read_header(file, path, CheckpointError), (KIND,), path, CheckpointError)
        keys, packed = set(file.keys()), header.get("packed")
        if not isinstance(packed, list) or not all(isinstance(name, str) for name in packed):
            raise CheckpointError(f"{path}: the header lists no packed weights; the file is damaged, write it again")
        parts = {f"{name}_{part}" for name in packed for part in ("values", "places")}
        if odd := sorted((parts - keys) | (set(packed) & keys)):
            raise CheckpointError(f"{path}: {some(odd)} are missing or duplicated; the file is damaged, write it again")
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

        network = prunekit.load_semi_structured("model.safetensors", make_model())
        outputs = network(inputs.to("cuda", torch.float16))

    Args:
        path: a file written by ``prunekit export --to semi-structured``.
        network: the network that was exported, with any weights; it is changed in place, moved to the device, and its
            floating-point tensors are converted.
        device: a CUDA device, such as "cuda:0".
        dtype: ``torch.float16`` or ``torch.bfloat16``; inputs must have the same dtype.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or does not fit the network.
        ConfigError: no CUDA device is available, or another dtype.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype}, but 2:4 kernels run in float16 and bfloat16 only; use one of them")
    path = Path(path)
    weights, packed = read(path)
    check_weights(weights, network, path, "give the network that was exported")
    layers = _layers(network, weights, packed, path)
    if not device.startswith("cuda") or not torch.cuda.is_available():
        raise ConfigError(
            f"2:4 kernels need a CUDA device, but device is {device!r} and CUDA is "
            f"{'available' if torch.cuda.is_available() else 'not available'}; "
            "on a CPU, use prunekit export --to csr or --to shrunk"
        )
    network.load_state_dict(weights)
    network.to(pick_device(device), dtype).eval()
    for layer in layers:
        sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return network


def _layers(network: nn.Module, weights: Mapping[str, Tensor], packed: list[str], path: Path) -> list[nn.Linear]:
    """Check that each packed weight fits a linear layer, and return these layers."""
    layers = []
    for name in packed:
        module = network.get_submodule(name.rpartition(".")[0])
        problem = weight_problem(weights[name])
        if not isinstance(module, nn.Linear) or problem:
            problem = problem or f"belongs to a {type(module).__name__}, expected a Linear"
            raise CheckpointError(f"{path}: {name} {problem}; the file is damaged, or of another network")
        layers.append(module)
    return layers
