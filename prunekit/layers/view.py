"""The one shape in which a criterion sees any prunable layer.

Every prunable layer is G groups of M positions with shared weights: its weight is ``[G, out, fan]``, its
inputs ``[G, M, samples, fan]`` and its outputs ``[G, M, samples, out]``. A linear layer has G = M = 1; a
convolution has G = groups and M = output positions; a locally connected layer has G = positions and M = 1.
So equations (1) and (2) of the paper are one formula, and no criterion depends on the kind of its layer.

This module is the contract; ``torch_views`` implements it for the layers of PyTorch, and plugins add others through a
hook. It must not know criteria, masks or training.
"""

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from prunekit.layers.follower import ChannelFollower

ViewOf = Callable[[nn.Module], "LayerView | Sequence[LayerView] | ChannelFollower | None"]


@attrs.frozen
class LayerShape:
    """The name and the sizes of a layer: all that a schedule may know of it.

    Attributes:
        name: the name of the module in the deployed network.
        kind: "linear", "convolution", or the name that a plugin gives its own kind.
        groups: number of groups, G.
        outputs: output neurons (or maps) of one group.
        fan_shape: sizes of the connections of one output neuron; input channels come first.
    """

    name: str
    kind: str
    groups: int
    outputs: int
    fan_shape: tuple[int, ...]

    @property
    def fan(self) -> int:
        """Connections of one output neuron."""
        return math.prod(self.fan_shape)

    @property
    def weights(self) -> int:
        """Prunable weights: connections, no biases."""
        return self.groups * self.outputs * self.fan


class LayerView(abc.ABC):
    """A module seen as G groups of M positions. One instance per module; it holds no data.

    A view of a module type of your own implements three methods:

        class ScaledView(LayerView):  # for a linear layer with weight [outputs, inputs]
            kind = "scaled"

            def __init__(self, module):
                super().__init__(module, 1, module.weight.shape[0], (module.weight.shape[1],))

            def positions(self, inputs):
                return 1

            def inputs_at(self, inputs, positions):
                return inputs.reshape(1, 1, -1, self.fan)

            def outputs_at(self, outputs, positions):
                return outputs.reshape(1, 1, -1, self.outputs)

    Positions are given as a ``slice`` of 0..M-1 without a step, so that the unfolded inputs of a whole layer never have
    to be in memory at once.

    Attributes:
        kind: the layer's kind in tables.
        parameter: name of the module's parameter that holds the weight; it may be in a submodule ("out_proj.weight").
        part: for a module with several weights, each of them a layer: the suffix to the module's name.
        groups: number of groups, G.
        outputs: output neurons (or maps) of one group.
        fan_shape: sizes of the connections of one output neuron; input channels come first.
        fan: number of connections of one output neuron.
        observable: whether the module's first input and its output are those of this weight. Where they are
            not, criteria that observe are refused, and the methods below are never called.
        groups_are_positions: whether all groups see the same input channels and compute the same output channels, each
            at its own place; otherwise each group has its own channels.
        channel_axis: the axis of channels in inputs and outputs, counted from the end; ``None`` where the layer has
            none, cannot be resized, or does not compute what its type says. Such a layer is never shrunk.
    """

    kind: ClassVar[str]
    parameter: str = "weight"
    part: str = ""
    observable: ClassVar[bool] = True
    groups_are_positions: ClassVar[bool] = False
    channel_axis: int | None = None

    def __init__(self, module: nn.Module, groups: int, outputs: int, fan_shape: tuple[int, ...]) -> None:
        self.module = module
        self.groups = groups
        self.outputs = outputs
        self.fan_shape = fan_shape
        self.fan = math.prod(fan_shape)

    @property
    def weight(self) -> Tensor:
        """The parameter itself, looked up by name at each use."""
        parameter: Tensor = attrgetter(self.parameter)(self.module)
        return parameter

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Reshape a tensor of the parameter's shape (weight, gradient, mask) to ``[G, out, fan]``."""
        return weight.reshape(self.groups, self.outputs, self.fan)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Reshape ``[G, out, fan]`` back to the parameter's shape."""
        return matrix.reshape(self.weight.shape)

    @abc.abstractmethod
    def positions(self, inputs: Tensor) -> int:
        """Return the number of positions, M, for these inputs of the module."""

    @abc.abstractmethod
    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        """Return the module's inputs at some positions, unfolded: ``[G, m, samples, fan]``."""

    @abc.abstractmethod
    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        """Return the module's outputs (or activations) at some positions: ``[G, m, samples, out]``."""

    def cells(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the inputs that some positions see, without repetition: ``[cells, samples, features]``.

        By default every position of every group has its own cell, its whole unfolded input. A layer whose positions
        share inputs saves time and memory with shared cells (pixels); ``taps`` then maps positions to cells.

        Args:
            inputs: the module's inputs.
            positions: int64 on the CPU, ascending.
        """
        return torch.cat([self.inputs_at(inputs, stretch) for stretch in _stretches(positions)], 1).flatten(0, 1)

    def taps(self, inputs: Tensor, positions: Tensor) -> Tensor | None:
        """Return the cells that each position of each group sees, int64 ``[taps, G * m]`` on the CPU.

        The features of a cell are the first dimension of ``fan_shape``, the taps the others. ``None``: each position of
        each group sees one cell, its own.
        """
        return None

    def units(self, outputs: Tensor, positions: Tensor) -> Tensor:
        """Return the module's outputs (or activations) at some positions: ``[G * m, samples, out]``."""
        return torch.cat([self.outputs_at(outputs, stretch) for stretch in _stretches(positions)], 1).flatten(0, 1)

    def uses(self, inputs: Mapping[str, Any], outputs: Any) -> tuple[int, ...] | None:
        """Return how often one call of the module uses each weight of a group, group by group.

        By default that is positions times samples, taken from the shapes. ``None``: not known.

        Args:
            inputs: the arguments of the call by their names in ``forward``, in that order.
            outputs: the value that the call returned.
        """
        if not self.observable:
            return None
        taken = next(iter(inputs.values()))
        return (self.positions(taken) * self.outputs_at(outputs, slice(0, 1)).shape[2],) * self.groups

    @property
    def pads(self) -> bool:
        """Whether inputs are padded with zeros, so that a constant input does not give a constant output."""
        return False

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        """Resize the module in place; the values of the new weight and bias do not matter.

        Called where ``channel_axis`` is set. Afterwards the module has its weight in ``parameter`` and its biases in
        ``bias``, which is ``None`` or can be reshaped to ``[groups, outputs]``. Dtype and device do not change; this
        view must not be used any more.

        Args:
            groups: number of groups; it differs from the old one only where groups have their own channels.
            outputs: output channels of one group.
            channels: input channels of one group.
            bias: whether the resized module has biases.
        """
        raise NotImplementedError

    def renew(self, weight: Sequence[int], bias: Sequence[int] | None) -> None:
        """Replace the module's weight and biases by uninitialised ones of these shapes; ``None``: no biases.

        The weight keeps its memory order, from which PyTorch chooses the kernels of a convolution (channels last).
        """
        old = self.weight
        ordered = torch.empty_permuted(weight, old.dim_order(), dtype=old.dtype, device=old.device)
        for name, tensor in ((self.parameter, ordered), ("bias", None if bias is None else old.new_empty(bias))):
            setattr(self.module, name, None if tensor is None else nn.Parameter(tensor, old.requires_grad))

    def shape(self, name: str) -> LayerShape:
        """Return the sizes of this layer, with its name in the network."""
        return LayerShape(name, self.kind, self.groups, self.outputs, self.fan_shape)


def _stretches(positions: Tensor) -> Iterator[slice]:
    """Split ascending positions into runs of consecutive ones."""
    for stretch in torch.tensor_split(positions, (positions.diff() != 1).nonzero().flatten() + 1):
        yield slice(int(stretch[0]), int(stretch[-1]) + 1)
