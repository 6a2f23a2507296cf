"""Rules for single operations: which channels the result of an operation has.

A rule sees the operation, its arguments and its result. It returns the channels of the result, or ``None``: then all
channels of the arguments must be kept. A rule that returns ``None`` too often costs speed, never correctness. A rule
must not know anything but its operation.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunekit.layers.channels.flow import AxisChannels, Operation
from prunekit.layers.channels.tensors import TracedTensors

Rule = Callable[[TracedTensors, Operation], AxisChannels | None]

_ELEMENTWISE = (
    *("abs", "celu", "clamp", "clamp_min", "clip", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log1p", "logsigmoid", "mish", "neg", "pow", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu"),
    *("softplus", "softsign", "sqrt", "square", "tanh"),
    *("add", "div", "divide", "maximum", "minimum", "mul", "multiply", "sub", "subtract", "true_divide"),
    *("__rsub__", "__rdiv__", "__rtruediv__"),
)
_SAME = ("clone", "contiguous", "detach", "double", "dropout", "feature_dropout", "float", "half", "bfloat16", "to")
_MOVES = (
    *("__getitem__", "expand", "flatten", "movedim", "permute", "reshape", "squeeze", "swapaxes", "transpose"),
    *("unflatten", "unsqueeze", "view"),
)
_SIZED = {"expand", "reshape", "unflatten", "view"}
_MEANS = ("amax", "amin", "mean", "sum")
_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")


def make_rules() -> Mapping[str, Rule]:
    """Return the rules: name of the operation in PyTorch -> rule."""
    rules: dict[str, Rule] = {}
    for name in _ELEMENTWISE:
        rules |= {name: _elementwise, f"{name}_": _elementwise}
    rules |= dict.fromkeys(_SAME, _same)
    rules |= dict.fromkeys(_MOVES, _move)
    rules |= dict.fromkeys(_MEANS, _mean)
    rules |= {f"{pool}{dimensions}d": partial(_pool, dimensions) for pool in _POOLS for dimensions in (1, 2, 3)}
    return rules | {"interpolate": partial(_pool, None), "pad": _pad, "cat": _concatenate, "concat": _concatenate}


def _elementwise(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to element-wise operations: activations, and sums and products of tensors, whose channels are joined."""
    if any(isinstance(value, Tensor) for value in operation.kwargs.values()):
        return None
    arguments = [value for value in operation.args if isinstance(value, Tensor)]
    found = [(tensor, tensors.known(tensor)) for tensor in arguments]
    axes = [along.axis - tensor.dim() for tensor, along in found if along is not None]
    if not axes or max(tensor.dim() for tensor in arguments) != operation.result.dim():
        return None
    axis = axes[0]
    size = operation.result.shape[axis]
    channels: Tensor | None = None
    operands: dict[int, Tensor] = {}
    for tensor in arguments:
        if -axis > tensor.dim() or tensor.shape[axis] != size:
            tensors.forget(tensor, "it is broadcast over channels")
            operands[id(tensor)] = torch.full((size,), torch.nan, dtype=torch.float64)
            continue
        along = tensors.along(tensor, axis)
        operands[id(tensor)] = along.constants
        if channels is None:
            channels = along.channels
        else:
            tensors.flow.channels.join(channels, along.channels)
    if channels is None:
        return None
    return AxisChannels(operation.result.dim() + axis, channels, _elementwise_constants(operation, operands))


def _elementwise_constants(operation: Operation, operands: Mapping[int, Tensor]) -> Tensor:
    """Return the constants of an element-wise result, from those of its arguments: id of the tensor -> constants."""
    values = [operands[id(value)].clone() if isinstance(value, Tensor) else value for value in operation.args]
    stacked = torch.stack(list(operands.values()))
    constants = torch.where(stacked.isnan().any(0), torch.nan, operation.function(*values, **operation.kwargs))
    if operation.name in {"mul", "mul_", "multiply", "multiply_"}:
        # A product with 0 is 0, whatever the other factor is.
        constants = torch.where(stacked.eq(0).any(0), 0.0, constants)
    return constants


def _same(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to a change of dtype, device or memory order, and to dropout that drops nothing."""
    along = tensors.known(operation.args[0])
    if along is None or not operation.result.is_floating_point() or operation.result.shape != operation.args[0].shape:
        return None
    if "dropout" in operation.name and not torch.equal(operation.result, operation.args[0]):
        return None
    return along


def _move(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to operations that only reshape or reorder, by applying them to a tensor of channel indices."""
    along = tensors.known(operation.args[0])
    others = [*operation.args[1:], *operation.kwargs.values()]
    count = 0 if along is None else len(along.channels)
    # A tensor among the others is an index, whose values may differ in another call. One channel cannot be recognised.
    if along is None or count < 2 or any(_holds_tensor(value) for value in others):  # noqa: PLR2004 - two differ
        return None
    indices = torch.empty_like(operation.args[0], dtype=torch.int64)
    shape = [count if axis == along.axis else 1 for axis in range(indices.dim())]
    indices.copy_(torch.arange(count, device=indices.device).reshape(shape))
    moved = operation.function(indices, *operation.args[1:], **operation.kwargs)
    if moved.shape != operation.result.shape or operation.result.dtype != operation.args[0].dtype:
        return None
    for axis in range(moved.dim()):
        rows = moved.movedim(axis, 0).flatten(1) if moved.dim() > 1 else moved.unsqueeze(1)
        line = rows[:, 0].cpu()
        if bool((rows == rows[:, :1]).all()) and _in_order(line, count):
            if operation.name in _SIZED and not _open_size(operation.name, others, axis, moved.dim()):
                tensors.flow.trusted_sizes = True
                if not tensors.trust_sizes:
                    return None
            return AxisChannels(axis, along.channels[line], along.constants[line])
    return None


def _argument(operation: Operation, name: str, default: Any) -> Any:
    """Return the second argument."""
    return operation.kwargs.get(name, operation.args[1] if len(operation.args) > 1 else default)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)


def _in_order(line: Tensor, count: int) -> bool:
    """Return True if all channel indices are present in ascending order, so that fewer channels would move alike."""
    numbers = line.tolist()
    return list(dict.fromkeys(numbers)) == list(range(count))


def _open_size(name: str, others: list[Any], axis: int, dimensions: int) -> bool:
    """Return True if the new shape leaves the size of this axis open (-1)."""
    sizes = others[0] if len(others) == 1 and isinstance(others[0], tuple | list) else others
    return name != "unflatten" and len(sizes) == dimensions and sizes[axis] == -1


def _mean(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to a mean, sum or extreme over other axes than that of the channels."""
    along = tensors.known(operation.args[0])
    dims = _argument(operation, "dim", None)
    if along is None or dims is None or "out" in operation.kwargs or not operation.result.is_floating_point():
        return None
    dimensions = operation.args[0].dim()
    reduced = {dim % dimensions for dim in ((dims,) if isinstance(dims, int) else dims)}
    if along.axis in reduced or not reduced:
        return None
    before = sum(dim < along.axis for dim in reduced)
    axis = along.axis - (before if operation.result.dim() < dimensions else 0)
    # A sum of constants depends on the size of the input.
    constants = along.constants.where(along.constants == 0, torch.nan) if operation.name == "sum" else along.constants
    return AxisChannels(axis, along.channels, constants)


def _pool(dimensions: int | None, tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to pooling and interpolation over the last axes, within each channel."""
    along = tensors.known(operation.args[0])
    if along is None or along.axis != operation.args[0].dim() - (dimensions or operation.args[0].dim() - 2) - 1:
        return None
    return _within(along, operation)


def _pad(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to padding of axes behind that of the channels."""
    along = tensors.known(operation.args[0])
    amounts = _argument(operation, "pad", ())
    if along is None or along.axis >= operation.args[0].dim() - len(amounts) // 2:
        return None
    return _within(along, operation)


def _within(along: AxisChannels, operation: Operation) -> AxisChannels:
    """Keep the channels, and the constants as far as the operation preserves them, found by applying it to 0 and 1."""
    first, *others = operation.args
    filled = (torch.full_like(first, value) for value in (0.0, 1.0))
    zeros, ones = (operation.function(tensor, *others, **operation.kwargs) for tensor in filled)
    constants = along.constants
    if bool((zeros != 0).any()):
        constants = torch.full_like(constants, torch.nan)
    elif not torch.allclose(ones, torch.ones_like(ones)):
        constants = constants.where(constants == 0, torch.nan)
    return AxisChannels(along.axis, along.channels, constants)


def _concatenate(tensors: TracedTensors, operation: Operation) -> AxisChannels | None:
    """Apply to concatenation along the channels, or along another axis, where the channels are joined."""
    joined, dim = operation.args[0], _argument(operation, "dim", 0)
    if not isinstance(joined, tuple | list) or not isinstance(dim, int) or {"axis", "out"} & operation.kwargs.keys():
        return None
    if any(tensor.dim() != operation.result.dim() for tensor in joined):
        return None
    axes = [along.axis for along in map(tensors.known, joined) if along is not None]
    if not axes:
        return None
    first, *others = (tensors.along(tensor, axes[0]) for tensor in joined)
    if dim % operation.result.dim() == axes[0]:
        channels, constants = (
            torch.cat([getattr(along, name) for along in (first, *others)]) for name in ("channels", "constants")
        )
        return AxisChannels(axes[0], channels, constants)
    constants = first.constants
    for along in others:
        tensors.flow.channels.join(first.channels, along.channels)
        constants = constants.where(constants == along.constants, torch.nan)
    return AxisChannels(axes[0], first.channels, constants)
