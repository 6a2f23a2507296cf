"""The private names of torch that prunekit uses, each behind one function or name that gives the reason.

All other modules use these. If a new torch changes one of the names, ``tests/distributed/test_torch_internals.py``
fails with a sentence that names the function to change. This module must not know the rest of prunekit.
"""

import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils import _pytree

COMPILED = "_orig_mod"
"""The child of a compiled module that is the module itself: ``torch.compile`` puts it into all parameter names."""

BatchNorm = _BatchNorm
"""The base class of all batch normalisations: torch's public ones have no other class in common."""

write_count: Callable[[Tensor], int] = attrgetter("_version")
"""Return how often a tensor has been written in place: torch has no other sign of it. (An ``attrgetter``, since a loop
over all buffers calls it in every step.)"""


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside a compiled one, or the module itself: torch.compile has no inverse."""
    inner: nn.Module = getattr(module, COMPILED, module)
    return inner


def may_compile() -> bool:
    """Return whether anything can have been compiled: importing dynamo to find out takes seconds."""
    return "torch._dynamo" in sys.modules


def parameter_slots(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return the parameters that a module itself registers: ``named_parameters`` leaves out those that are ``None``."""
    return module._parameters  # noqa: SLF001


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether hooks run before or after a module's forward pass: torch only registers and removes hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def reversed_padding(convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return the padding before and after each dimension, last dimension first: ``padding`` may be "same" instead."""
    return list(convolution._reversed_padding_repeated_twice)  # noqa: SLF001


def runs_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether an optimiser was initialised as one, so that hooks can be registered with it.

    Some wrappers inherit from ``Optimizer`` but never call its constructor (Accelerate's), and ``isinstance`` cannot
    tell them apart.
    """
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def storage_identity(tensor: Tensor) -> int:
    """Return a number that tensors share if they share their memory: on "meta", ``data_ptr`` is always 0."""
    identity: int = tensor.untyped_storage()._cdata  # noqa: SLF001
    return identity


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists, dicts and registered classes, in order; torch.export has them."""
    leaves: list[Any] = _pytree.tree_leaves(tree)
    return leaves


def tree_map(change: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree of the same form, with every leaf changed; see ``tree_leaves``."""
    return _pytree.tree_map(change, tree)


def default_store() -> Any:
    """Return the key-value store of the default process group: it can be used where ranks no longer agree.

    The rendezvous makes it, and torch has no public way to get it back.

    Raises:
        ValueError: there is no process group.
    """
    return distributed.distributed_c10d._get_default_store()  # noqa: SLF001


def exchange_counts() -> dict[str, int]:
    """Return how many collectives this rank has run for each type of device: torch has no public count."""
    group: Any = distributed.group.WORLD
    devices = sorted(group._device_types, key=str)  # noqa: SLF001
    return {str(device): group._get_backend(device)._get_sequence_number_for_group() for device in devices}  # noqa: SLF001


def has_onednn_product() -> bool:
    """Return whether ``onednn_product`` can be called in this build of torch."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply float32 matrices with oneDNN: of all ways from torch to oneDNN, the only one that copies nothing.

    Compiled models call it for linear layers. ``torch.mm`` calls MKL instead.

    Args:
        left: ``[rows, samples]``, contiguous: gaps between rows make it a hundred times slower.
        right: ``[samples, columns]``, likewise.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")  # noqa: SLF001
    return product
