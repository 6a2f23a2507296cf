"""Shrunk networks as files: the smaller weights, and which layer has which sizes.

A file is safetensors with the state dict, and one metadata entry, ``prunekit-shrunk``, a JSON object: ``format``: 1;
``tool``: what wrote it; ``layers``: layer -> ``groups``, ``outputs`` and ``channels`` of one group, and ``bias``;
``norms``: batch normalisation -> channels. Nothing is unpickled, and what a header claims costs no memory: no layer
becomes larger than it was. This module must not know how networks are shrunk.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import safetensors.torch
import torch
from torch import Tensor, nn

from prunekit.deployment.shrinking.resizing import resized
from prunekit.errors import CheckpointError
from prunekit.files.atomic import write_atomically
from prunekit.files.safetensors_files import check_format, damaged, open_tensors, read_header, some
from prunekit.layers.channels.norms import is_norm, resize_norm
from prunekit.layers.lookup import parameter_of
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.files import tool
from prunekit.masks.reparametrized import copy_of
from prunekit.plugins.manager import installed_views

FORMAT = 1
METADATA = "prunekit-shrunk"


@attrs.frozen
class _Sizes:
    """Sizes of a layer."""

    groups: int
    outputs: int
    channels: int
    bias: bool


def save_shrunk(path: str | os.PathLike[str], network: nn.Module, *, view_of: ViewOf | None = None) -> None:
    """Write a shrunk network, whole or not at all; the same network gives the same bytes.

    Args:
        path: where to; by custom it ends in ``.safetensors``.
        network: as ``shrink`` made it, trained further or not.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Raises:
        CheckpointError: when the file cannot be written.
    """
    write_atomically(path, encode_shrunk(network, view_of=view_of))


def encode_shrunk(network: nn.Module, *, view_of: ViewOf | None = None) -> bytes:
    """Return the bytes that ``save_shrunk`` writes."""
    views = installed_views() if view_of is None else view_of
    layers, norms = {}, {}
    for name, module in network.named_modules():
        view = _layer(module, views)
        if view is not None:
            has_bias = module.bias is not None
            layers[name] = attrs.asdict(_Sizes(view.groups, view.outputs, view.fan_shape[0], has_bias))
        elif is_norm(module):
            norms[name] = len(module.get_buffer("running_mean"))
    header = {"format": FORMAT, "tool": tool(), "layers": layers, "norms": norms}
    # safetensors refuses tensors that share memory, such as tied weights.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors, {METADATA: json.dumps(header, sort_keys=True)})


def load_shrunk(network: nn.Module, path: str | os.PathLike[str], *, view_of: ViewOf | None = None) -> nn.Module:
    """Return a network of the sizes and weights in a file.

    Args:
        network: of the same architecture, in its full size, as it was before it was shrunk; it stays as it is.
        path: of the file.
        view_of: gives the views of layers; ``None``: the core and all installed plugins do.

    Raises:
        CheckpointError: a file that is damaged or of another network; says which layer or weight.
    """
    path, views = Path(path), installed_views() if view_of is None else view_of
    small = copy_of(network)
    with open_tensors(path, CheckpointError) as file:
        header = read_header(file, METADATA, path, CheckpointError)
        if header is None:
            raise CheckpointError(f"{path}: holds no shrunk network; write one with prunekit export --to shrunk")
        _resize(small, *_check(header, path), views, path)
        wanted = small.state_dict()
        if odd := sorted(wanted.keys() ^ set(file.keys())):
            raise CheckpointError(f"{path}: the file and the network differ in {some(odd)}; {_NEXT}")
        weights: dict[str, Tensor] = {}
        for name, tensor in wanted.items():
            shape = file.get_slice(name).get_shape()
            if list(tensor.shape) != shape:
                raise CheckpointError(
                    f"{path}: {name} is {shape}, expected {list(tensor.shape)} by the sizes in the file; {_NEXT}"
                )
            weights[name] = file.get_tensor(name)
    small.load_state_dict(weights)
    return small


_FIELDS = {"groups", "outputs", "channels", "bias"}
_NEXT = "give the network that was shrunk, in its full size, or write the file again"


def _check(header: Mapping[str, Any], path: Path) -> tuple[dict[str, _Sizes], dict[str, int]]:
    """Return the sizes in the header, checked."""
    check_format(header, METADATA, "shrunk network", FORMAT, path, CheckpointError)
    wrong = damaged(path, METADATA)
    layers, norms = header.get("layers"), header.get("norms")
    if not isinstance(layers, dict) or not isinstance(norms, dict):
        raise CheckpointError(wrong.format("no layers or no norms"))
    sizes = {}
    for name, entry in layers.items():
        if not isinstance(entry, dict) or entry.keys() != _FIELDS or type(entry["bias"]) is not bool:
            raise CheckpointError(wrong.format(f"sizes of {name!r}"))
        if not all(_is_size(entry[field]) for field in _FIELDS - {"bias"}):
            raise CheckpointError(wrong.format(f"sizes of {name!r}"))
        sizes[name] = _Sizes(**entry)
    for name, size in norms.items():
        if not _is_size(size):
            raise CheckpointError(wrong.format(f"size of {name!r}"))
    return sizes, norms


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _resize(
    network: nn.Module, layers: Mapping[str, _Sizes], norms: Mapping[str, int], view_of: ViewOf, path: Path
) -> None:
    modules = dict(network.named_modules())
    for name, sizes in layers.items():
        view = _layer(modules[name], view_of) if name in modules else None
        if view is None:
            raise CheckpointError(f"{path}: has sizes for {name!r}, which is no layer of the network; {_NEXT}")
        largest = (view.groups, view.outputs, view.fan_shape[0])
        found = (sizes.groups, sizes.outputs, sizes.channels)
        if any(size > most for size, most in zip(found, largest, strict=True)) or (
            view.groups_are_positions and sizes.groups != view.groups
        ):
            raise CheckpointError(f"{path}: {name!r} has sizes {found}, the network's are {largest}; {_NEXT}")
        if found != largest or sizes.bias != (modules[name].bias is not None):  # a weight that is shared stays so
            resized(modules[name], view_of, *found, bias=sizes.bias)
    for name, size in norms.items():
        if name not in modules or not is_norm(modules[name]) or size > len(modules[name].get_buffer("running_mean")):
            raise CheckpointError(f"{path}: has {size} channels for {name!r}, which does not fit the network; {_NEXT}")
        resize_norm(modules[name], torch.arange(size))


def _layer(module: nn.Module, view_of: ViewOf) -> LayerView | None:
    """Return the view of a layer that can be resized; one whose weight is computed never is."""
    view = view_of(module)
    if not isinstance(view, LayerView) or view.channel_axis is None or parameter_of(view) is None:
        return None
    return view
