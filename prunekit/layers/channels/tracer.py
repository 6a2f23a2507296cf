"""Run a copy of a network once on samples and trace where its channels flow.

Forward hooks observe the calls of layers that can be resized and of channel followers. PyTorch's function mode observes
all other operations, one by one, and ``rules`` says what they do to channels. An unknown operation is assumed to need
all channels of its inputs. So is an operation that reads values, because its result may decide what is computed. This
module must not know what is removed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.distributed.torch_internals import may_compile, tree_leaves
from prunekit.layers.channels.constants import layer_constants
from prunekit.layers.channels.flow import AxisChannels, Flow, FollowerCall, LayerCall, Operation
from prunekit.layers.channels.modules import TracedModules
from prunekit.layers.channels.rules import make_rules
from prunekit.layers.channels.tensors import TracedTensors
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.samples import Samples
from prunekit.layers.view import LayerView, ViewOf
from prunekit.masks.reparametrized import copy_of

# Functions and attributes of a tensor that do not read its values.
_HARMLESS = {
    *("__get__", "__hash__", "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous"),
    *("is_floating_point", "is_signed", "nelement", "numel", "size", "storage_offset", "stride"),
}
# Functions that use only the shape of a tensor; their result is a new input.
_SHAPES = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "ones_like"}
_SHAPES |= {"rand_like", "randn_like", "zeros_like"}
_KNOWN_OUTPUTS = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def trace_channels(
    network: nn.Module, samples: Samples, view_of: ViewOf, *, trust_sizes: bool
) -> tuple[nn.Module, Flow]:
    """Return a copy of a network in evaluation mode, and where the channels of the copy flow.

    Args:
        network: any module with values; it is not changed.
        samples: the arguments of the call that is traced.
        view_of: returns the view of a module.
        trust_sizes: whether to assume that a size written as a number in a reshape is the number of channels.
    """
    copied = copy_of(network).eval()
    tracer = ChannelTracer(copied, view_of, trust_sizes=trust_sizes)
    # A compiled network would compile the trace, too.
    with torch.compiler.set_stance("force_eager") if may_compile() else nullcontext(), tracer.hooks():
        with tracer:
            outputs = samples.call(copied)
        return copied, tracer.finish(outputs)


class ChannelTracer(TorchFunctionMode):
    """Traces the channels of a network through one forward pass; see ``trace_channels`` for the arguments."""

    def __init__(self, network: nn.Module, view_of: ViewOf, *, trust_sizes: bool) -> None:
        super().__init__()
        self._modules = TracedModules.of(network, view_of)
        self._flow = Flow(fixed=self._modules.fixed())
        self._tensors = TracedTensors(self._flow, trust_sizes=trust_sizes)
        self._rules = make_rules()
        self._depth = 0  # of layers and followers that are being called
        self._operating = False
        self._keep_all = ""  # the reason to keep all channels

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Observe the calls of layers and followers."""
        with ExitStack() as stack:
            for module, _ in self._modules.names():
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                stack.callback(before.remove)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(after.remove)
            yield

    def finish(self, outputs: Any) -> Flow:
        """Return where channels flow, after all channels of the network's outputs are marked to be kept."""
        leaves = tree_leaves(outputs)
        if not all(isinstance(leaf, _KNOWN_OUTPUTS) for leaf in leaves):
            self._keep_all = self._keep_all or "the network returns a value of an unknown type"
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._tensors.forget(leaf, "it is an output of the network")
        channels, fixed = self._flow.channels, self._flow.fixed
        first_calls: dict[str, LayerCall] = {}
        for call in self._flow.layers:
            first = first_calls.setdefault(call.layer, call)
            channels.join(first.inputs, call.inputs)
            channels.join(first.outputs, call.outputs)
            if call.layer in fixed:
                channels.keep(torch.cat([call.inputs, call.outputs]), fixed[call.layer])
        first_followers: dict[str, FollowerCall] = {}
        for follower in self._flow.followers:
            if follower.module in fixed:
                channels.keep(follower.channels, fixed[follower.module])
            else:
                channels.join(first_followers.setdefault(follower.module, follower).channels, follower.channels)
        if self._keep_all:
            channels.keep(torch.arange(len(channels)), self._keep_all)
        return self._flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._tensors.known(tensor)  # forgets it if it was changed, before this operation may change it again
        self._operating = True
        try:
            outputs = func(*args, **kwargs)
        finally:
            self._operating = False
        name = getattr(func, "__name__", str(func))
        of_torch = (getattr(func, "__module__", None) or "torch").split(".")[0] == "torch"
        returns = any(isinstance(leaf, Tensor) for leaf in tree_leaves(outputs))
        if tensors and not (of_torch and (name in _SHAPES or (name in _HARMLESS and not returns))):
            if not returns and name != "__setitem__":
                self._keep_all = self._keep_all or f"the network reads values ({name})"
            known = of_torch and args and isinstance(outputs, Tensor)
            self._operate(name if known else "", Operation(name, func, args, kwargs, outputs), tensors)
        return outputs

    def _operate(self, known: str, operation: Operation, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            for owner in self._modules.owners.get(id(tensor), ()):
                self._flow.fixed.setdefault(owner, f"{operation.name} uses its weights")
        along = None
        if known in self._rules:
            self._tensors.renew(operation.result)  # an operation in place, on its first argument
            along = self._rules[known](self._tensors, operation)
        if along is None:
            for tensor in tensors:
                self._tensors.forget(tensor, f"it passes through {operation.name}")
        else:
            self._tensors.note(operation.result, along)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name, seen = self._modules.layers.get(module) or self._modules.followers[module]
        if self._depth > 1 or self._operating:
            self._flow.fixed.setdefault(name, "it is called inside another layer or operation")
        if self._depth == 1:
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                self._flow.fixed.setdefault(name, "it is called with other arguments than one tensor")
                for leaf in tree_leaves((args, kwargs)):
                    if isinstance(leaf, Tensor):
                        self._tensors.forget(leaf, f"it enters {name} with other arguments")
            elif isinstance(seen, LayerView):
                self._call_layer(name, seen, args[0], output)
            else:
                self._call_follower(name, seen, args[0], output)
        self._depth -= 1  # last, because the operations above must not be traced

    def _call_layer(self, name: str, view: LayerView, tensor: Tensor, output: Tensor) -> None:
        assert view.channel_axis is not None
        axis = output.dim() + view.channel_axis
        inputs = self._tensors.along(tensor, view.channel_axis)
        outputs = self._flow.channels.new(output.shape[axis])
        if view.groups > 1 and not view.groups_are_positions:
            # Groups must keep equal sizes, so each is kept or removed as a whole.
            self._join_groups(view.groups, inputs.channels, outputs)
        constants = layer_constants(view, inputs.constants)
        if name in self._flow.fixed:
            constants = torch.full_like(constants, torch.nan)
        self._flow.layers.append(LayerCall(name, view, inputs.channels, inputs.constants, outputs, constants))
        self._tensors.note(output, AxisChannels(axis, outputs, constants))

    def _call_follower(self, name: str, follower: ChannelFollower, tensor: Tensor, output: Tensor) -> None:
        inputs = self._tensors.along(tensor, follower.channel_axis)
        if follower.channels != len(inputs.channels):
            self._flow.fixed.setdefault(name, "its input has another number of channels")
        elif follower.groups < follower.channels:
            self._join_groups(follower.groups, inputs.channels)
        self._flow.followers.append(FollowerCall(name, follower, inputs.channels))
        fixed = name in self._flow.fixed
        constants = torch.full_like(inputs.constants, torch.nan) if fixed else follower.constants(inputs.constants)
        self._tensors.note(output, AxisChannels(inputs.axis, inputs.channels, constants))

    def _join_groups(self, groups: int, *channels: Tensor) -> None:
        """Have all channels of each group kept or removed together."""
        members = torch.cat([numbers.reshape(groups, -1) for numbers in channels], 1)
        self._flow.channels.join(members[:, :1].expand_as(members).flatten(), members.flatten())
