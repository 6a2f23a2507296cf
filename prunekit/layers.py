"""The one shape in which a criterion sees any prunable layer.

Every prunable layer is G groups of M positions with shared weights: its weight is ``[G, out, fan]``, its
inputs ``[G, M, samples, fan]`` and its outputs ``[G, M, samples, out]``. A linear layer has G = M = 1; a
convolution has G = groups and M = output positions; a locally connected layer has G = positions and M = 1.
So equations (1) and (2) of the paper are one formula, and no criterion asks what kind of layer it has.

This module knows linear layers, convolutions and attention; a plugin adds others with ``prunekit_layer_view``.
It must not know criteria, masks or training.
"""

import abc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from prunekit.errors import ConfigError, nearest

ViewOf = Callable[[nn.Module], "LayerView | Sequence[LayerView] | None"]
Box = tuple[tuple[int, int], ...]  # first and last + 1 of each spatial dimension


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
    """

    kind: ClassVar[str]
    parameter: str = "weight"
    part: str = ""
    observable: ClassVar[bool] = True

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

    def shape(self, name: str) -> LayerShape:
        """Return the sizes of this layer under the name it has in a network."""
        return LayerShape(name, self.kind, self.groups, self.outputs, self.fan_shape)


class LinearView(LayerView):
    """``nn.Linear``: one group, one position; all leading dimensions (tokens too) are samples."""

    kind = "linear"

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module, 1, module.out_features, (module.in_features,))

    def positions(self, inputs: Tensor) -> int:
        return 1

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        return inputs.reshape(1, 1, -1, self.fan)

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        return outputs.reshape(1, 1, -1, self.outputs)


class ConvolutionView(LayerView):
    """``nn.Conv1d/2d/3d`` with any groups, stride, padding, padding mode and dilation.

    Padding positions are inputs like others: constant 0 with zero padding, so they correlate with nothing.
    """

    kind = "convolution"
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def __init__(self, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        fan_shape = (module.in_channels // module.groups, *module.kernel_size)
        super().__init__(module, module.groups, module.out_channels // module.groups, fan_shape)

    def _batched(self, images: Tensor) -> Tensor:
        return images if images.dim() == len(self.module.kernel_size) + 2 else images.unsqueeze(0)

    def _margins(self) -> list[tuple[int, int]]:
        """Return the padding before and after, for each spatial dimension."""
        # The attribute that forward itself uses; it also resolves padding="same".
        amounts = self.module._reversed_padding_repeated_twice  # noqa: SLF001 - there is no public name for it
        return list(zip(amounts[-2::-2], amounts[-1::-2], strict=True))

    def _extents(self) -> list[int]:
        """Return how far a kernel reaches, for each spatial dimension."""
        return [d * (kernel - 1) + 1 for kernel, d in zip(self.module.kernel_size, self.module.dilation, strict=True)]

    def _output_size(self, inputs: Tensor) -> tuple[int, ...]:
        sizes = self._batched(inputs).shape[2:]
        spans = zip(sizes, self._margins(), self._extents(), self.module.stride, strict=True)
        return tuple((size + sum(margin) - extent) // stride + 1 for size, margin, extent, stride in spans)

    def positions(self, inputs: Tensor) -> int:
        return math.prod(self._output_size(inputs))

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        size = self._output_size(inputs)
        images, margins = self._batched(inputs.detach()), self._margins()
        if self.module.padding_mode != "zeros":
            amounts = [amount for margin in reversed(margins) for amount in margin]
            images = nn.functional.pad(images, amounts, mode=self.module.padding_mode)
            margins = [(0, 0)] * len(margins)
        start, stop, _ = positions.indices(math.prod(size))
        pieces = [self._unfold(images, margins, box) for box in _boxes(size, start, stop)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _unfold(self, images: Tensor, margins: list[tuple[int, int]], box: Box) -> Tensor:
        """Return ``[G, positions of the box, samples, fan]``, touching only what the box needs."""
        module, dimensions = self.module, len(box)
        windows, amounts = images, list[int]()
        for axis, ((margin, _), (first, last)) in enumerate(zip(margins, box, strict=True)):
            size, stride = images.shape[axis + 2], module.stride[axis]
            start = first * stride - margin
            stop = (last - 1) * stride - margin + self._extents()[axis]
            # What lies in the image is cut out, the rest is padding; a box may lie in the padding altogether.
            begin, end = min(max(start, 0), size), min(max(stop, 0), size)
            windows = windows.narrow(axis + 2, begin, end - begin)
            amounts = [max(min(stop, 0) - start, 0), max(stop - max(start, size), 0), *amounts]
        windows = nn.functional.pad(windows, amounts)
        for axis, extent in enumerate(self._extents()):
            windows = windows.unfold(axis + 2, extent, module.stride[axis])[..., :: module.dilation[axis]]
        # [samples, channels, *positions, *taps] -> [G, *positions, samples, channels of a group, *taps]
        samples, count = len(images), math.prod(last - first for first, last in box)
        split = windows.reshape(samples, self.groups, self.fan_shape[0], *windows.shape[2:])
        ordered = split.movedim((1, 0, 2), (0, dimensions + 1, dimensions + 2))
        return ordered.reshape(self.groups, count, samples, self.fan)

    def _padded(self, inputs: Tensor, positions: Tensor) -> tuple[Tensor, int]:
        """Return the padded inputs, of the first dimension only what the positions see, and where that begins."""
        amounts = [amount for margin in reversed(self._margins()) for amount in margin]
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        images = nn.functional.pad(self._batched(inputs.detach()), amounts, mode=mode)
        inner, stride = math.prod(self._output_size(inputs)[1:]), self.module.stride[0]
        first, last = (int(positions[end]) // inner * stride for end in (0, -1))
        return images[:, :, first : last + self._extents()[0]], first

    def cells(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the pixels, padding too, group by group: ``[G * pixels, samples, channels of a group]``."""
        images, _ = self._padded(inputs, positions)
        grouped = images.reshape(len(images), self.groups, self.fan_shape[0], -1)
        return grouped.permute(1, 3, 0, 2).flatten(0, 1)

    def taps(self, inputs: Tensor, positions: Tensor) -> Tensor:
        images, first = self._padded(inputs[:1] if inputs.dim() > len(self.fan_shape) else inputs, positions)
        kernel = self.module.kernel_size
        places = torch.unravel_index(positions, self._output_size(inputs))
        offsets = torch.unravel_index(torch.arange(math.prod(kernel)), kernel)
        pixels = torch.full((len(offsets[0]), len(positions)), 0)
        geometry = zip(images.shape[2:], places, offsets, self.module.stride, self.module.dilation, strict=True)
        for size, place, offset, stride, dilation in geometry:
            pixels = pixels * size + place * stride + offset.unsqueeze(1) * dilation
        pixels -= first * math.prod(images.shape[3:])
        groups = torch.arange(self.groups) * math.prod(images.shape[2:])
        return (pixels.unsqueeze(1) + groups.unsqueeze(1)).flatten(1)

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        taken = self._batched(outputs).flatten(2)[:, :, positions]  # [samples, maps, m]
        grouped = taken.reshape(taken.shape[0], self.groups, self.outputs, -1)
        return grouped.permute(1, 3, 0, 2)


class AttentionView(LayerView):
    """One projection of ``nn.MultiheadAttention``; the packed one of query, key and value is three groups.

    The projections happen inside one call of the module, so what comes into them and out of them is not seen.
    """

    kind = "attention"
    observable = False

    def __init__(self, module: nn.MultiheadAttention, part: str, parameter: str) -> None:
        self.part, self.parameter = part, parameter
        groups = 3 if part == "in_proj" else 1
        rows, columns = module.get_parameter(parameter).shape
        super().__init__(module, groups, rows // groups, (columns,))

    def positions(self, inputs: Tensor) -> int:
        raise NotImplementedError

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        raise NotImplementedError

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        raise NotImplementedError


def _projections(attention: nn.MultiheadAttention) -> tuple[AttentionView, ...]:
    # Query, key and value are packed into one parameter where they have the same size.
    inputs = ("q_proj", "k_proj", "v_proj") if attention.in_proj_weight is None else ("in_proj",)
    parameters = {part: f"{part}_weight" for part in inputs} | {"out_proj": "out_proj.weight"}
    return tuple(AttentionView(attention, part, parameter) for part, parameter in parameters.items())


def _stretches(positions: Tensor) -> Iterator[slice]:
    """Cut ascending positions into stretches without a gap."""
    for stretch in torch.tensor_split(positions, (positions.diff() != 1).nonzero().flatten() + 1):
        yield slice(int(stretch[0]), int(stretch[-1]) + 1)


def _boxes(size: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Cut the run start..stop-1 of flattened positions into boxes, in order."""
    inner = math.prod(size[1:])
    whole = tuple((0, length) for length in size[1:])
    while start < stop:
        row, offset = divmod(start, inner)
        if offset == 0 and stop - start >= inner:
            rows = (stop - start) // inner
            yield ((row, row + rows), *whole)
            start += rows * inner
        else:
            end = min(stop - row * inner, inner)
            yield from (((row, row + 1), *box) for box in _boxes(size[1:], offset, end))
            start = row * inner + end


def core_view(module: nn.Module) -> LayerView | tuple[LayerView, ...] | None:
    """Return the view, or the views, of a module type that the core knows, else ``None``."""
    # Transposed convolutions are no subclasses of these three.
    if isinstance(module, nn.Linear):
        return LinearView(module)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvolutionView(module)
    if isinstance(module, nn.MultiheadAttention):
        return _projections(module)
    return None


def find_layers(network: nn.Module, view_of: ViewOf = core_view) -> dict[str, LayerView]:
    """Return the prunable layers of a network by module name, in the order of the modules.

    A module that appears twice, or a weight that two modules share, is one layer, under its first name. The
    weights of a module that has several are layers under its name and their part: "attention.in_proj". Looks
    at no value of a weight, so the network may be on the device "meta".
    """
    layers: dict[str, LayerView] = {}
    known: set[int] = set()
    for name, module in network.named_modules():
        found = view_of(module)
        views = [] if found is None else [found] if isinstance(found, LayerView) else found
        for view in views:
            # What is no parameter is made anew at each look, and looking may change it (spectral norm).
            weight = _parameter(view)
            if weight is None or id(weight) not in known:
                known.add(id(weight))
                layers[".".join(filter(None, (name, view.part)))] = view
    return layers


def parameter_name(layer: str, view: LayerView) -> str:
    """Return the name of a layer's weight in the network's ``state_dict``."""
    module = layer.removesuffix(view.part).removesuffix("." if view.part else "")
    return f"{module}.{view.parameter}" if module else view.parameter


def check_layers(layers: Mapping[str, LayerView], *, observed: bool) -> None:
    """Refuse layers that cannot be pruned as they are.

    Args:
        layers: those that are to be pruned.
        observed: whether a criterion is to see what comes into them and out of them.

    Raises:
        ConfigError: a weight without a shape (a lazy module), a weight that is computed from other parameters
            (weight norm, ``torch.nn.utils.prune``), or a layer whose inputs cannot be observed; names the layer.
    """
    for name, view in layers.items():
        weight = _parameter(view)
        if weight is None:
            raise ConfigError(
                f"layer {name!r} computes its {view.parameter} from other parameters; make it one again "
                f"before pruning, with {_way_back(view)}, or leave the layer out"
            )
        if is_lazy(weight):
            raise ConfigError(f"layer {name!r} has no shape yet; run one batch through the model first")
        if observed and not view.observable:
            raise ConfigError(
                f"layer {name!r} computes inside {type(view.module).__name__}, where its inputs cannot be observed; "
                "leave it out, or take a criterion that needs weights only, such as 'magnitude'"
            )


def _parameter(view: LayerView) -> nn.Parameter | None:
    """Return the parameter that is a view's weight; ``None`` where the weight is made of others."""
    return dict(view.module.named_parameters(remove_duplicate=False)).get(view.parameter)


def _way_back(view: LayerView) -> str:
    if parametrize.is_parametrized(view.module, view.parameter):
        function = "parametrize.remove_parametrizations"
    elif hasattr(view.module, f"{view.parameter}_mask"):
        function = "prune.remove"
    else:
        function = "remove_weight_norm or remove_spectral_norm"
    return f"torch.nn.utils.{function}"


def resolve(pattern: str, names: Iterable[str], aliases: Mapping[str, str] | None = None) -> list[str]:
    """Return the layers that a user means, in the order of the network.

    A pattern is a full name, an alias of the task (which may stand for a glob), the unambiguous end of a dotted
    name ("f" for "features.f"), or a glob ("conv*").

    Raises:
        ConfigError: when nothing, or more than one layer where one is meant, answers to it.
    """
    known = list(names)
    aliases = aliases or {}
    if pattern in known:
        return [pattern]
    if pattern in aliases:
        meant = aliases[pattern]
        found = [meant] if meant in known else [name for name in known if fnmatchcase(name, meant)]
        if found:
            return found
    ends = [name for name in known if name.endswith("." + pattern)]
    if len(ends) == 1:
        return ends
    if len(ends) > 1:
        raise ConfigError(f"layer {pattern!r} could be {', '.join(ends)}; write the full name")
    matches = [name for name in known if fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(f"no prunable layer is called {pattern!r}{nearest(pattern, [*known, *aliases])}")
    return matches
