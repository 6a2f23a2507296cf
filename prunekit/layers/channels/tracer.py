"""Watching a network: it is run once on sample inputs, and everything it does to channels is noted.

Calls of layers that can be resized and of batch normalisation are seen through hooks, all other operations through
PyTorch's function mode, one by one; ``operations`` knows what those do to channels. Whatever is not known is taken to
need all channels that come in. So is whatever looks at values, since it may do something else next time. This module
must not know what is removed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.distributed.torch_internals import has_forward_hooks, parameter_slots, tree_leaves, write_count
from prunekit.layers.channels.constants import layer_constants
from prunekit.layers.channels.flow import Flow, Flowing, LayerCall, NormCall, Passed
from prunekit.layers.channels.norms import is_norm, norm_constants
from prunekit.layers.view import LayerView, ViewOf

# What a forward pass may ask of a tensor without looking at its values.
_HARMLESS = {
    *("__get__", "__hash__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous"),
    *("is_floating_point", "is_signed", "nelement", "numel", "size", "storage_offset", "stride"),
}
# What takes no more than the shape of a tensor. The result comes from outside.
_SHAPES = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like"}
_SHAPES |= {"rand_like", "randn_like", "zeros_like"}
_SEEN = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@attrs.frozen(eq=False)
class Operation:
    """One operation of PyTorch on tensors.

    Attributes:
        name: of the function, method or operator: "relu", "add_", "__getitem__".
        function: does it again, with these or other arguments.
        args: its positional arguments, at least one.
        kwargs: the others.
        result: what it gave.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Tensor


Rule = Callable[["ChannelTracer", Operation], Passed | None]


class ChannelTracer(TorchFunctionMode):
    """Watches one forward pass.

    Args:
        rules: the name of an operation -> what it does to channels; ``None``: what it does not know.
        trusting: whether a size that stands in the code may be taken to be that of the channels.
    """

    def __init__(self, network: nn.Module, view_of: ViewOf, rules: Mapping[str, Rule], *, trusting: bool) -> None:
        super().__init__()
        self.flow, self.trusting = Flow(), trusting
        self._rules = rules
        self._flowing: dict[int, Flowing] = {}
        self._inside = 0
        self._operating = False
        self._all = ""
        self._views: dict[nn.Module, tuple[str, LayerView]] = {}
        self._norms: dict[nn.Module, str] = {}
        for name, module in network.named_modules():
            view = view_of(module)
            if isinstance(view, LayerView) and view.channel_axis is not None:
                self._views[module] = (name, view)
            elif is_norm(module):
                self._norms[module] = name
        self._owners: dict[int, list[str]] = {}
        for name, module in network.named_modules():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self._owners.setdefault(id(tensor), []).append(name)
        for module, name in self._named():
            self._check(module, name)

    def _named(self) -> Iterator[tuple[nn.Module, str]]:
        yield from ((module, name) for module, (name, _) in self._views.items())
        yield from self._norms.items()

    def _check(self, module: nn.Module, name: str) -> None:
        """Note modules that are not what their type says, or not alone with their weights."""
        weight = "weight" if module in self._norms else self._views[module][1].parameter
        own = parameter_slots(module)
        if (own.keys() | {"bias"}) != {weight, "bias"} or ("bias" not in own and module.bias is not None):
            self.flow.fixed.setdefault(name, "its weights are computed, or not those of its type")
        if has_forward_hooks(module):
            self.flow.fixed.setdefault(name, "it has hooks")
        for tensor in module.parameters(recurse=False):
            if len(self._owners[id(tensor)]) > 1:
                self.flow.fixed.setdefault(name, "it shares a weight with another module")

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Listen to the modules."""
        with ExitStack() as stack:
            for module, _ in self._named():
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                stack.callback(before.remove)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(after.remove)
            yield

    def finish(self, outputs: Any) -> Flow:
        """Return what was seen; all channels of the network's outputs have to stay."""
        leaves = tree_leaves(outputs)
        if not all(isinstance(leaf, _SEEN) for leaf in leaves):
            self._all = self._all or "the network returns something that is not looked into"
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self.forget(leaf, "it is an output of the network")
        channels = self.flow.channels
        first: dict[str, LayerCall] = {}
        for call in self.flow.layers:
            known = first.setdefault(call.layer, call)
            channels.join(known.inputs, call.inputs)
            channels.join(known.outputs, call.outputs)
            if call.layer in self.flow.fixed:
                channels.keep(torch.cat([call.inputs, call.outputs]), self.flow.fixed[call.layer])
        scaled: dict[str, NormCall] = {}
        for norm in self.flow.norms:
            channels.join(scaled.setdefault(norm.norm, norm).channels, norm.channels)
            if norm.norm in self.flow.fixed:
                channels.keep(norm.channels, self.flow.fixed[norm.norm])
        if self._all:
            channels.keep(torch.arange(len(channels)), self._all)
        return self.flow

    def known(self, tensor: Tensor) -> Flowing | None:
        """Return what flows in a tensor; ``None`` where that is not known, or no longer."""
        flowing = self._flowing.get(id(tensor))
        if flowing is not None and flowing.version != write_count(tensor):
            self.forget(tensor, "it is changed in place")
            return None
        return flowing

    def along(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Return the channels along an axis of a tensor, and their constants; unknown ones have to stay."""
        axis %= tensor.dim()
        flowing = self.known(tensor)
        if flowing is not None and flowing.axis == axis:
            return flowing.channels, flowing.constants
        self.forget(tensor, "it is read along another axis")
        channels = self.flow.channels.new(tensor.shape[axis])
        self.flow.channels.keep(channels, "it comes from outside, or from an operation that is not followed")
        return channels, torch.full(channels.shape, torch.nan, dtype=torch.float64)

    def forget(self, tensor: Tensor, reason: str) -> None:
        """Have the channels of a tensor stay, and no longer say what is in it."""
        flowing = self._flowing.pop(id(tensor), None)
        if flowing is not None:
            self.flow.channels.keep(flowing.channels, reason)

    def note(self, tensor: Tensor, passed: Passed) -> None:
        """Say what flows in a tensor from now on."""
        if tensor.is_inference():  # nobody counts how often it is changed
            self.flow.channels.keep(passed.channels, "it flows through inference mode")
        else:
            axis, channels, constants = attrs.astuple(passed)
            self._flowing[id(tensor)] = Flowing(tensor, write_count(tensor), axis, channels, constants)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self.known(tensor)  # what was changed since is forgotten before the operation may change it, too
        self._operating = True
        try:
            outputs = func(*args, **kwargs)
        finally:
            self._operating = False
        name = getattr(func, "__name__", str(func))
        ours = (getattr(func, "__module__", None) or "torch").split(".")[0] == "torch"
        returns = any(isinstance(leaf, Tensor) for leaf in tree_leaves(outputs))
        if tensors and not (ours and (name in _SHAPES or (name in _HARMLESS and not returns))):
            if not returns and name != "__setitem__":
                self._all = self._all or f"the network looks at values ({name})"
            known = ours and args and isinstance(outputs, Tensor)
            self._operate(name if known else "", Operation(name, func, args, kwargs, outputs), tensors)
        return outputs

    def _operate(self, known: str, operation: Operation, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            for owner in self._owners.get(id(tensor), ()):
                self.flow.fixed.setdefault(owner, f"{operation.name} uses its weights")
        passed = None
        if known in self._rules:
            if id(operation.result) in self._flowing:  # an operation in place, on its first argument
                self._flowing[id(operation.result)].version = write_count(operation.result)
            passed = self._rules[known](self, operation)
        if passed is None:
            for tensor in tensors:
                self.forget(tensor, f"it goes through {operation.name}")
        else:
            self.note(operation.result, passed)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # What is done here is not to be watched, so that the module is left last of all.
        name = self._views[module][0] if module in self._views else self._norms[module]
        if self._inside > 1 or self._operating:
            self.flow.fixed.setdefault(name, "it is called inside another layer or operation")
        if self._inside == 1:
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                self.flow.fixed.setdefault(name, "it is called with more than one tensor")
                for leaf in tree_leaves((args, kwargs)):
                    if isinstance(leaf, Tensor):
                        self.forget(leaf, f"it goes into {name} with others")
            elif module in self._views:
                self._layer(name, self._views[module][1], args[0], output)
            else:
                self._norm(name, module, args[0], output)
        self._inside -= 1

    def _layer(self, name: str, view: LayerView, tensor: Tensor, output: Tensor) -> None:
        assert view.channel_axis is not None
        axis = output.dim() + view.channel_axis
        inputs, constants = self.along(tensor, view.channel_axis)
        outputs = self.flow.channels.new(output.shape[axis])
        if view.groups > 1 and not view.groups_are_positions:
            # The groups of a convolution have to stay of one size, so that a group goes as a whole.
            members = torch.cat([inputs.reshape(view.groups, -1), outputs.reshape(view.groups, -1)], 1)
            self.flow.channels.join(members[:, :1].expand_as(members).flatten(), members.flatten())
        dead = layer_constants(view, constants)
        if name in self.flow.fixed:
            dead = torch.full_like(dead, torch.nan)
        self.flow.layers.append(LayerCall(name, view, inputs, constants, outputs, dead))
        self.note(output, Passed(axis, outputs, dead))

    def _norm(self, name: str, norm: nn.Module, tensor: Tensor, output: Tensor) -> None:
        channels, constants = self.along(tensor, 1)
        self.flow.norms.append(NormCall(name, channels))
        passed = torch.full_like(constants, torch.nan)
        if name not in self.flow.fixed and is_norm(norm):
            passed = norm_constants(norm, constants)
        self.note(output, Passed(1, channels, passed))
