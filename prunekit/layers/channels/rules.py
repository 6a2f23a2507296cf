"""What single operations do to channels: keep them apart and in order, or bring several together.

A rule looks at the operation, its arguments and its result, and says what flows in the result, or ``None``: then all
channels that come in have to stay. So a rule that says too little costs speed, never a right result. A rule must know
nothing but that operation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunekit.layers.channels.flow import Flowing, Passed
from prunekit.layers.channels.tracer import ChannelTracer, Operation, Rule

_ONE_BY_ONE = (
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
    """Return the rule of each operation that is known, by its name in PyTorch."""
    rules: dict[str, Rule] = {}
    for name in _ONE_BY_ONE:
        rules |= {name: _one_by_one, f"{name}_": _one_by_one}
    rules |= dict.fromkeys(_SAME, _same)
    rules |= dict.fromkeys(_MOVES, _move)
    rules |= dict.fromkeys(_MEANS, _mean)
    rules |= {f"{pool}{dimensions}d": partial(_spread, dimensions) for pool in _POOLS for dimensions in (1, 2, 3)}
    return rules | {"interpolate": partial(_spread, None), "pad": _pad, "cat": _concatenate, "concat": _concatenate}


def _one_by_one(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Each element by itself: activations, and sums and products of tensors, whose channels become one."""
    if any(isinstance(value, Tensor) for value in operation.kwargs.values()):
        return None
    tensors = [value for value in operation.args if isinstance(value, Tensor)]
    found = {id(tensor): watch.known(tensor) for tensor in tensors}
    axes = [flow.axis - flow.tensor.dim() for flow in found.values() if flow is not None]
    if not axes or max(tensor.dim() for tensor in tensors) != operation.result.dim():
        return None
    axis = axes[0]
    size = operation.result.shape[axis]
    channels: Tensor | None = None
    operands: dict[int, Tensor] = {}
    for tensor in tensors:
        if -axis > tensor.dim() or tensor.shape[axis] != size:
            watch.forget(tensor, "it is spread over channels")
            operands[id(tensor)] = torch.full((size,), torch.nan, dtype=torch.float64)
            continue
        own, operands[id(tensor)] = watch.along(tensor, axis)
        if channels is None:
            channels = own
        else:
            watch.flow.channels.join(channels, own)
    if channels is None:
        return None
    values = [operands[id(value)].clone() if isinstance(value, Tensor) else value for value in operation.args]
    constants = operation.function(*values, **operation.kwargs)
    unknown = torch.stack(list(operands.values())).isnan().any(0)
    constants = torch.where(unknown, torch.nan, constants)
    if operation.name in {"mul", "mul_", "multiply", "multiply_"}:
        # What is multiplied by 0 is 0, whatever it is.
        zero = torch.stack(list(operands.values())).eq(0).any(0)
        constants = torch.where(zero, 0.0, constants)
    return Passed(operation.result.dim() + axis, channels, constants)


def _same(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Another dtype, device or place in memory; dropout that drops nothing."""
    flow = watch.known(operation.args[0])
    if flow is None or not operation.result.is_floating_point() or operation.result.shape != operation.args[0].shape:
        return None
    if "dropout" in operation.name and not torch.equal(operation.result, operation.args[0]):
        return None
    return Passed(flow.axis, flow.channels, flow.constants)


def _move(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """The same elements in another shape: found by moving the places of the channels in the same way."""
    flow = watch.known(operation.args[0])
    others = [*operation.args[1:], *operation.kwargs.values()]
    count = 0 if flow is None else len(flow.channels)
    # A tensor among the others is an index, whose values may be others the next time. One channel leaves no trace.
    if flow is None or count < 2 or any(_holds_tensor(value) for value in others):  # noqa: PLR2004 - two differ
        return None
    places = torch.empty_like(operation.args[0], dtype=torch.int64)
    shape = [count if axis == flow.axis else 1 for axis in range(places.dim())]
    places.copy_(torch.arange(count, device=places.device).reshape(shape))
    moved = operation.function(places, *operation.args[1:], **operation.kwargs)
    if moved.shape != operation.result.shape or operation.result.dtype != operation.args[0].dtype:
        return None
    for axis in range(moved.dim()):
        rows = moved.movedim(axis, 0).flatten(1) if moved.dim() > 1 else moved.unsqueeze(1)
        line = rows[:, 0].cpu()
        if bool((rows == rows[:, :1]).all()) and _in_order(line, count):
            if operation.name in _SIZED and not _open_size(operation.name, others, axis, moved.dim()):
                watch.flow.guessed = True
                if not watch.trusting:
                    return None
            return Passed(axis, flow.channels[line], flow.constants[line])
    return None


def _argument(operation: Operation, name: str, default: Any) -> Any:
    """Return the second argument."""
    return operation.kwargs.get(name, operation.args[1] if len(operation.args) > 1 else default)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)


def _in_order(line: Tensor, count: int) -> bool:
    """Say whether all places are there, in their order, so that fewer of them would be moved alike."""
    numbers = line.tolist()
    return list(dict.fromkeys(numbers)) == list(range(count))


def _open_size(name: str, others: list[Any], axis: int, dimensions: int) -> bool:
    """Say whether the size of an axis was left open (-1) where the shape was given."""
    sizes = others[0] if len(others) == 1 and isinstance(others[0], tuple | list) else others
    return name != "unflatten" and len(sizes) == dimensions and sizes[axis] == -1


def _mean(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Mean, sum or extreme over other axes than that of the channels."""
    flow = watch.known(operation.args[0])
    dims = _argument(operation, "dim", None)
    if flow is None or dims is None or "out" in operation.kwargs or not operation.result.is_floating_point():
        return None
    dimensions = operation.args[0].dim()
    reduced = {dim % dimensions for dim in ((dims,) if isinstance(dims, int) else dims)}
    if flow.axis in reduced or not reduced:
        return None
    before = sum(dim < flow.axis for dim in reduced)
    axis = flow.axis - (before if operation.result.dim() < dimensions else 0)
    # A sum is of as many as the input is large.
    constants = flow.constants.where(flow.constants == 0, torch.nan) if operation.name == "sum" else flow.constants
    return Passed(axis, flow.channels, constants)


def _spread(dimensions: int | None, watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Pooling and interpolation: linear, or an extreme, over the last axes, within each channel."""
    flow = watch.known(operation.args[0])
    if flow is None or flow.axis != operation.args[0].dim() - (dimensions or operation.args[0].dim() - 2) - 1:
        return None
    return _within(flow, operation)


def _pad(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Padding of the axes behind that of the channels."""
    flow = watch.known(operation.args[0])
    amounts = _argument(operation, "pad", ())
    if flow is None or flow.axis >= operation.args[0].dim() - len(amounts) // 2:
        return None
    return _within(flow, operation)


def _within(flow: Flowing, operation: Operation) -> Passed:
    """Pass channels on; constants where the operation leaves those as they are, seen on 0 and 1."""
    first, *others = operation.args
    filled = (torch.full_like(first, value) for value in (0.0, 1.0))
    zeros, ones = (operation.function(tensor, *others, **operation.kwargs) for tensor in filled)
    constants = flow.constants
    if bool((zeros != 0).any()):
        constants = torch.full_like(constants, torch.nan)
    elif not torch.allclose(ones, torch.ones_like(ones)):
        constants = constants.where(constants == 0, torch.nan)
    return Passed(flow.axis, flow.channels, constants)


def _concatenate(watch: ChannelTracer, operation: Operation) -> Passed | None:
    """Side by side along the channels; or along another axis, where the channels become one."""
    tensors, along = operation.args[0], _argument(operation, "dim", 0)
    if not isinstance(tensors, tuple | list) or not isinstance(along, int) or {"axis", "out"} & operation.kwargs.keys():
        return None
    if any(tensor.dim() != operation.result.dim() for tensor in tensors):
        return None
    axes = [flow.axis for flow in map(watch.known, tensors) if flow is not None]
    if not axes:
        return None
    parts = [watch.along(tensor, axes[0]) for tensor in tensors]
    if along % operation.result.dim() == axes[0]:
        return Passed(axes[0], *(torch.cat(part) for part in zip(*parts, strict=True)))
    channels, constants = parts[0]
    for others, values in parts[1:]:
        watch.flow.channels.join(channels, others)
        constants = constants.where(constants == values, torch.nan)
    return Passed(axes[0], channels, constants)
