"""What was seen of the channels of a network: records. This module must not know how it was seen, or what for."""

from collections import Counter

import attrs
from torch import Tensor

from prunekit.layers.channels.union import ChannelUnion
from prunekit.layers.view import LayerView


@attrs.define(eq=False)
class Flowing:
    """The channels of a tensor.

    Attributes:
        tensor: held, so that no other tensor gets its id.
        version: of the tensor when this was noted; another one means that it was changed since.
        axis: that the channels lie along, from 0.
        channels: the channel of each place along it; int64.
        constants: float64; what is in each place, whatever the inputs are, NaN where that depends on them.
    """

    tensor: Tensor
    version: int
    axis: int
    channels: Tensor
    constants: Tensor


@attrs.frozen(eq=False)
class LayerCall:
    """One call of a layer.

    Attributes:
        layer: the name of its module.
        view: of it.
        inputs: the channel of each of its inputs.
        constants: what comes in at each, NaN where that varies.
        outputs: the channel of each of its units.
        dead: what each unit puts out where that is a constant, NaN where it varies.
    """

    layer: str
    view: LayerView
    inputs: Tensor
    constants: Tensor
    outputs: Tensor
    dead: Tensor


@attrs.frozen(eq=False)
class NormCall:
    """One call of batch normalisation: its name and the channels that it scales."""

    norm: str
    channels: Tensor


@attrs.define(eq=False)
class Flow:
    """All that was seen.

    Attributes:
        channels: all of them.
        layers: calls of layers, in order.
        norms: calls of batch normalisation, in order.
        fixed: modules whose weights are used elsewhere, too: nothing in them may change. Name -> why.
        guessed: whether channels go through a size that is given as a number: nobody can see whether it was computed.
    """

    channels: ChannelUnion = attrs.field(factory=ChannelUnion)
    layers: list[LayerCall] = attrs.field(factory=list)
    norms: list[NormCall] = attrs.field(factory=list)
    fixed: dict[str, str] = attrs.field(factory=dict)
    guessed: bool = False

    def calls(self) -> Counter[str]:
        """Return how often each layer was called."""
        return Counter(call.layer for call in self.layers)


@attrs.frozen
class Passed:
    """What an operation leaves of channels: the axis they lie along, which, and what is constant in them."""

    axis: int
    channels: Tensor
    constants: Tensor
