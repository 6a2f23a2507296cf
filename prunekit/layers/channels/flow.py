"""Records of what tracing a network found about its channels. This module must not know how they were traced."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor

from prunekit.layers.channels.union import ChannelUnion
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.view import LayerView


@attrs.frozen(eq=False)
class AxisChannels:
    """The channels along one axis of a tensor.

    Attributes:
        axis: axis of the channels, from 0.
        channels: number of the channel at each index of the axis; int64.
        constants: value at each index if it does not depend on the inputs of the network, else NaN; float64.
    """

    axis: int
    channels: Tensor
    constants: Tensor


@attrs.define(eq=False)
class TracedTensor:
    """A tensor of the forward pass whose channels are known.

    Attributes:
        tensor: a reference that keeps the tensor alive, so that no other tensor gets its id.
        writes: how often the tensor had been written when it was noted; it was changed in place if that differs.
        along: the channels of the tensor.
    """

    tensor: Tensor
    writes: int
    along: AxisChannels


@attrs.frozen(eq=False)
class Operation:
    """One PyTorch operation on tensors.

    Attributes:
        name: name of the function, method or operator: "relu", "add_", "__getitem__".
        function: repeats the operation, with the same or other arguments.
        args: positional arguments, at least one.
        kwargs: keyword arguments.
        result: the tensor that the operation returned.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Tensor


@attrs.frozen(eq=False)
class LayerCall:
    """One call of a layer.

    Attributes:
        layer: name of its module.
        view: view of the module.
        inputs: channel of each input; int64.
        input_constants: value of each input channel if it is constant, else NaN; float64.
        outputs: channel of each unit; int64.
        output_constants: value of each unit if it is constant, else NaN; float64.
    """

    layer: str
    view: LayerView
    inputs: Tensor
    input_constants: Tensor
    outputs: Tensor
    output_constants: Tensor


@attrs.frozen(eq=False)
class FollowerCall:
    """One call of a module that follows channels.

    Attributes:
        module: name of the module.
        follower: the module as a channel follower.
        channels: its channels; int64.
    """

    module: str
    follower: ChannelFollower
    channels: Tensor


@attrs.define(eq=False)
class Flow:
    """Where the channels of a network flow.

    Attributes:
        channels: all channels.
        layers: calls of layers, in order.
        followers: calls of channel followers, in order.
        fixed: modules that must not be changed, for example because their weights have other uses: name -> reason.
        trusted_sizes: whether channels pass through a reshape to a size written as a number, which may or may not have
            been computed from the number of channels.
    """

    channels: ChannelUnion = attrs.field(factory=ChannelUnion)
    layers: list[LayerCall] = attrs.field(factory=list)
    followers: list[FollowerCall] = attrs.field(factory=list)
    fixed: dict[str, str] = attrs.field(factory=dict)
    trusted_sizes: bool = False

    def calls(self) -> Counter[str]:
        """Return the number of calls of each layer."""
        return Counter(call.layer for call in self.layers)
