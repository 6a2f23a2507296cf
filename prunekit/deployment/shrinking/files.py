"""Files of shrunk networks: the smaller weights, and the sizes of each layer.

A file is safetensors with the state dict and, after the header (see ``prunekit.files.headers``), ``layers``: layer ->
``groups``, ``outputs`` and ``channels`` of one group, and ``bias``; and ``followers``: channel follower ->
number of channels. Nothing is unpickled, and a false header costs no memory, because no layer becomes larger than it
was. This module must not know how networks are shrunk.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import attrs
import safetensors.torch
import torch
from torch import Tensor, nn

from prunekit.deployment.shrinking.resizing import resized
from prunekit.errors import CheckpointError
from prunekit.files.atomic import write_atomically
from prunekit.files.headers import check_header, damaged, encode_metadata, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header, some
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.lookup import parameter_of
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.reparametrized import copy_of
from prunekit.plugins.manager import installed_views

KIND = "shrunk"


@attrs.frozen
class _Sizes:
    """The sizes of a layer: number of groups, units and input channels of each group, and whether it has biases."""

    groups: int
    outputs: int
    channels: int
    bias: bool


def save_shrunk(path: str | os.PathLike[str], network: nn.Module, *, view_of: ViewOf | None = None) -> None:
    """Write a shrunk network to a file, atomically; the same network gives the same bytes.

        save_shrunk("small.safetensors", shrink(network, images, masks).network)

    Args:
        path: path of the file, usually ending in ``.safetensors``.
        network: a network from ``shrink``, which may have been trained further.
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_atomically(path, encode_shrunk(network, view_of or installed_views()))


def encode_shrunk(network: nn.Module, view_of: ViewOf) -> bytes:
    """Return the bytes that ``save_shrunk`` writes."""
    layers, followers = {}, {}
    for name, module in network.named_modules():
        view = view_of(module)
        if isinstance(view, ChannelFollower):
            followers[name] = view.channels
        elif _can_be_resized(view):
            has_bias = module.bias is not None
            layers[name] = attrs.asdict(_Sizes(view.groups, view.outputs, view.fan_shape[0], has_bias))
    # safetensors refuses tensors that share memory, such as tied weights.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors, encode_metadata(KIND, {"layers": layers, "followers": followers}))


def load_shrunk(network: nn.Module, path: str | os.PathLike[str], *, view_of: ViewOf | None = None) -> nn.Module:
    """Load a shrunk network: return a copy of a network, with the sizes and weights in the file.

        small = load_shrunk(make_network(), "small.safetensors")

    Args:
        network: a network of the same architecture in its full size; it is not changed.
        path: path of the file.
        view_of: returns the view of a module; ``None``: prunekit and all installed plugins do.

    Raises:
        CheckpointError: the file is damaged or belongs to another network; the message names the layer or weight.
    """
    path, view_of = Path(path), view_of or installed_views()
    refuse_other_kinds(path, (KIND,), CheckpointError)
    small = copy_of(network)
    with open_tensors(path, CheckpointError) as file:
        header = check_header(read_header(file, path, CheckpointError), (KIND,), path, CheckpointError)
        _resize(small, *_check(header, path), view_of, path)
        wanted = small.state_dict()
        if odd := sorted(wanted.keys() ^ set(file.keys())):
            raise CheckpointError(f"{path}: the file and the network differ in {some(odd)}; {_NEXT_STEP}")
        weights: dict[str, Tensor] = {}
        for name, tensor in wanted.items():
            shape = file.get_slice(name).get_shape()
            if list(tensor.shape) != shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {shape}, but the sizes in the file require {list(tensor.shape)}; "
                    f"{_NEXT_STEP}"
                )
            weights[name] = file.get_tensor(name)
    small.load_state_dict(weights)
    return small


_FIELDS = {"groups", "outputs", "channels", "bias"}
_NEXT_STEP = "pass the network that was shrunk, in its full size, or write the file again"


def _check(header: Mapping[str, Any], path: Path) -> tuple[dict[str, _Sizes], dict[str, int]]:
    """Return the sizes of layers and of channel followers in the header, after checking them."""
    wrong = damaged(path)
    layers, followers = header.get("layers"), header.get("followers")
    if not isinstance(layers, dict) or not isinstance(followers, dict):
        raise CheckpointError(wrong.format("no layers or no followers"))
    sizes = {}
    for name, entry in layers.items():
        if not isinstance(entry, dict) or entry.keys() != _FIELDS or type(entry["bias"]) is not bool:
            raise CheckpointError(wrong.format(f"sizes of {name!r}"))
        if not all(_is_size(entry[field]) for field in _FIELDS - {"bias"}):
            raise CheckpointError(wrong.format(f"sizes of {name!r}"))
        sizes[name] = _Sizes(**entry)
    for name, size in followers.items():
        if not _is_size(size):
            raise CheckpointError(wrong.format(f"size of {name!r}"))
    return sizes, followers


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _resize(
    network: nn.Module, layers: Mapping[str, _Sizes], followers: Mapping[str, int], view_of: ViewOf, path: Path
) -> None:
    modules = dict(network.named_modules())
    for name, sizes in layers.items():
        view = view_of(modules[name]) if name in modules else None
        if not _can_be_resized(view):
            raise CheckpointError(f"{path}: has sizes for {name!r}, but the network has no such layer; {_NEXT_STEP}")
        largest = (view.groups, view.outputs, view.fan_shape[0])
        found = (sizes.groups, sizes.outputs, sizes.channels)
        if any(size > most for size, most in zip(found, largest, strict=True)) or (
            view.groups_are_positions and sizes.groups != view.groups
        ):
            raise CheckpointError(f"{path}: {name!r} has sizes {found}, but the network's are {largest}; {_NEXT_STEP}")
        if found != largest or sizes.bias != (view.module.bias is not None):  # a shared weight must remain shared
            resized(view.module, view_of, *found, bias=sizes.bias)
    for name, size in followers.items():
        follower = view_of(modules[name]) if name in modules else None
        if not isinstance(follower, ChannelFollower) or not _fits(follower, size):
            raise CheckpointError(f"{path}: {size} channels do not fit {name!r} of the network; {_NEXT_STEP}")
        if size < follower.channels:
            follower.resize(torch.arange(size))


def _fits(follower: ChannelFollower, size: int) -> bool:
    """Return True if a follower can be resized to the first channels, in whole groups."""
    return size <= follower.channels and size % (follower.channels // follower.groups) == 0


def _can_be_resized(view: object) -> TypeGuard[LayerView]:
    """Return True for the view of a layer that can be resized; a layer with a computed weight cannot."""
    return isinstance(view, LayerView) and view.channel_axis is not None and parameter_of(view) is not None
