"""The one shape in which a criterion sees any prunable layer.

Every prunable layer is G groups of M positions with shared weights: its weight is ``[G, out, fan]``, its
inputs ``[G, M, samples, fan]`` and its outputs ``[G, M, samples, out]``. A linear layer has G = M = 1; a
convolution has G = groups and M = output positions; a locally connected layer has G = positions and M = 1.
So equations (1) and (2) of the paper are one formula, and no criterion asks what kind of layer it has.

This module is the contract; ``core_views`` has the layers of PyTorch, and a plugin adds others with
``prunekit_layer_view``. It must not know criteria, masks or training.
"""

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

ViewOf = Callable[[nn.Module], "LayerView | Sequence[LayerView] | None"]


@attrs.frozen
class LayerShape:
    """What a schedule may know of a layer: its name and its sizes, no weights.

    Attributes:
        name: the name of the module in the deployed network.
        kind: "linear", "convolution", or what a plugin calls its own.
        groups: G.
        outputs: output neurons (or maps) of one group.
        fan_shape: the connections of one output neuron; input channels come first.
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

    Positions are given as a ``slice`` without a step over 0..M-1, so that the unfolded inputs of a whole
    layer never have to be in memory at once.

    Attributes:
        kind: what tables call it.
        parameter: the module's parameter that is the weight; may be one of a module inside ("out_proj.weight").
        part: for a module with several weights, each seen as a layer: what comes behind the module's name.
        observable: whether the module's first input and its output are those of this weight. Where they are
            not, criteria that observe are refused, and the methods below are never called.
        groups_are_positions: whether all groups see the same input channels and make the same output channels, each at
            a place of its own; else each group has channels of its own.
        channel_axis: the axis of channels in inputs and outputs, counted from the end; ``None`` where the layer has
            none, cannot be resized, or computes something else than its type says. Then it is never shrunk.
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

    @property
    def fan(self) -> int:
        """Connections of one output neuron."""
        return math.prod(self.fan_shape)

    @property
    def weight(self) -> Tensor:
        """The parameter itself, looked up by name at each use."""
        parameter: Tensor = attrgetter(self.parameter)(self.module)
        return parameter

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Bring a tensor of the parameter's shape (weight, gradient, mask) to ``[G, out, fan]``."""
        return weight.reshape(self.groups, self.outputs, self.fan)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Bring ``[G, out, fan]`` back to the parameter's shape."""
        return matrix.reshape(self.weight.shape)

    @abc.abstractmethod
    def positions(self, inputs: Tensor) -> int:
        """Return M for these inputs of the module."""

    @abc.abstractmethod
    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        """Unfold the module's inputs at some positions: ``[G, m, samples, fan]``."""

    @abc.abstractmethod
    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        """Bring the module's outputs (or its activations) at some positions to ``[G, m, samples, out]``."""

    def cells(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return what some positions see, each thing once: ``[cells, samples, features]``.

        By default every position of every group has a cell of its own, its whole unfolded input. A layer whose
        positions share inputs saves time and memory with cells that are shared (pixels); then ``taps`` tells which.

        Args:
            inputs: of the module.
            positions: int64, on the CPU, ascending.
        """
        return torch.cat([self.inputs_at(inputs, stretch) for stretch in _stretches(positions)], 1).flatten(0, 1)

    def taps(self, inputs: Tensor, positions: Tensor) -> Tensor | None:
        """Return the cells that each position of each group sees, int64 ``[taps, G * m]`` on the CPU.

        The features of a cell are the first dimension of ``fan_shape``, the taps the others. ``None``: each position of
        each group sees the one cell of its own.
        """
        return None

    def units(self, outputs: Tensor, positions: Tensor) -> Tensor:
        """Bring the module's outputs (or its activations) at some positions to ``[G * m, samples, out]``."""
        return torch.cat([self.outputs_at(outputs, stretch) for stretch in _stretches(positions)], 1).flatten(0, 1)

    def uses(self, inputs: Mapping[str, Any], outputs: Any) -> tuple[int, ...] | None:
        """Return how often one call of the module uses each weight of a group, group by group.

        By default that is positions times samples, read off the shapes. ``None``: not known.

        Args:
            inputs: the arguments of the call by the names of ``forward``, in that order.
            outputs: what the call returned.
        """
        if not self.observable:
            return None
        taken = next(iter(inputs.values()))
        return (self.positions(taken) * self.outputs_at(outputs, slice(0, 1)).shape[2],) * self.groups

    @property
    def pads(self) -> bool:
        """Whether zeros stand beside the inputs, so that one constant in all of them is not one in all outputs."""
        return False

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        """Make the module one of other sizes, in place; what its new weight and bias hold does not matter.

        Called where ``channel_axis`` is given. The module then has its weight in ``parameter`` and its biases in
        ``bias``, which is ``None`` or reshapes to ``[groups, outputs]``. Dtype and device stay; this view is void.

        Args:
            groups: G; another number than before only where groups have channels of their own.
            outputs: output channels of one group.
            channels: input channels of one group.
            bias: whether it has biases.
        """
        raise NotImplementedError

    def renew(self, weight: Sequence[int], bias: Sequence[int] | None) -> None:
        """Give the module a weight and biases of these shapes, or no biases; they are not initialised.

        The weight keeps its order in memory: by it PyTorch chooses the kernels of a convolution (channels last).
        """
        old = self.weight
        ordered = torch.empty_permuted(weight, old.dim_order(), dtype=old.dtype, device=old.device)
        for name, tensor in ((self.parameter, ordered), ("bias", None if bias is None else old.new_empty(bias))):
            setattr(self.module, name, None if tensor is None else nn.Parameter(tensor, old.requires_grad))

    def shape(self, name: str) -> LayerShape:
        """Return the sizes of this layer under the name it has in a network."""
        return LayerShape(name, self.kind, self.groups, self.outputs, self.fan_shape)


def _stretches(positions: Tensor) -> Iterator[slice]:
    """Cut ascending positions into stretches without a gap."""
    for stretch in torch.tensor_split(positions, (positions.diff() != 1).nonzero().flatten() + 1):
        yield slice(int(stretch[0]), int(stretch[-1]) + 1)
