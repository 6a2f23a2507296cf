"""Views of PyTorch's own layers: linear, convolutions and the projections of attention.

This module must not know where the layers are in a network, nor which of them are pruned.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.distributed.torch_internals import reversed_padding
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.torch_followers import core_follower
from prunekit.layers.view import LayerView

Box = tuple[tuple[int, int], ...]  # (start, stop) of each spatial dimension


class LinearView(LayerView):
    """``nn.Linear``: one group, one position; all leading dimensions (tokens too) are samples."""

    kind = "linear"
    module: nn.Linear

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module, 1, module.out_features, (module.in_features,))
        self.channel_axis = -1 if type(module).forward is nn.Linear.forward else None

    def positions(self, inputs: Tensor) -> int:
        return 1

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        return inputs.reshape(1, 1, -1, self.fan)

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        return outputs.reshape(1, 1, -1, self.outputs)

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        self.module.in_features, self.module.out_features = channels, outputs
        self.renew((outputs, channels), (outputs,) if bias else None)


class ConvolutionView(LayerView):
    """``nn.Conv1d/2d/3d`` with any groups, stride, padding, padding mode and dilation.

    Padding counts as input; with zero padding it is constantly 0, so it correlates with nothing.
    """

    kind = "convolution"
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def __init__(self, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        fan_shape = (module.in_channels // module.groups, *module.kernel_size)
        super().__init__(module, module.groups, module.out_channels // module.groups, fan_shape)
        known = type(module).forward in {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}
        self.channel_axis = -len(fan_shape) if known else None

    @property
    def pads(self) -> bool:
        return self.module.padding_mode == "zeros" and any(map(sum, self._margins()))

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        module = self.module
        module.groups, module.in_channels, module.out_channels = groups, groups * channels, groups * outputs
        shape = (module.out_channels, channels, *module.kernel_size)
        self.renew(shape, (module.out_channels,) if bias else None)

    def _batched(self, images: Tensor) -> Tensor:
        return images if images.dim() == len(self.module.kernel_size) + 2 else images.unsqueeze(0)

    def _margins(self) -> list[tuple[int, int]]:
        """Return the padding before and after, for each spatial dimension."""
        # The attribute that forward itself uses; it also resolves padding="same".
        amounts = reversed_padding(self.module)
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
            # Cut out the part inside the image and pad the rest; a box may lie entirely in the padding.
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
        """Return the padded inputs, cut in the first dimension to what the positions see, and where the cut begins."""
        amounts = [amount for margin in reversed(self._margins()) for amount in margin]
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        images = nn.functional.pad(self._batched(inputs.detach()), amounts, mode=mode)
        inner, stride = math.prod(self._output_size(inputs)[1:]), self.module.stride[0]
        first, last = (int(positions[end]) // inner * stride for end in (0, -1))
        return images[:, :, first : last + self._extents()[0]], first

    def cells(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the pixels, with padding, group by group: ``[G * pixels, samples, channels of a group]``."""
        images, _ = self._padded(inputs, positions)
        channels = self.fan_shape[0]
        grouped = images.reshape(len(images), self.groups, channels, math.prod(images.shape[2:]))
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
        grouped = taken.reshape(len(taken), self.groups, self.outputs, taken.shape[2])
        return grouped.permute(1, 3, 0, 2)


class AttentionView(LayerView):
    """One projection of ``nn.MultiheadAttention``; the packed projection of query, key and value has three groups.

    The projections are computed inside one call of the module, so their inputs and outputs cannot be observed.
    """

    kind = "attention"
    observable = False

    def __init__(self, module: nn.MultiheadAttention, part: str, parameter: str) -> None:
        self.part, self.parameter = part, parameter
        groups = 3 if part == "in_proj" else 1
        rows, columns = module.get_parameter(parameter).shape
        super().__init__(module, groups, rows // groups, (columns,))

    def uses(self, inputs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
        """Return the number of projected tokens: one number, or those of query, key and value if they are packed."""
        sources = {
            "in_proj": ("query", "key", "value"),
            "q_proj": ("query",),
            "k_proj": ("key",),
            "v_proj": ("value",),
            "out_proj": ("query",),
        }
        return tuple(math.prod(inputs[source].shape[:-1]) for source in sources[self.part])

    def positions(self, inputs: Tensor) -> int:
        raise NotImplementedError

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        raise NotImplementedError

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        raise NotImplementedError


def _projections(attention: nn.MultiheadAttention) -> tuple[AttentionView, ...]:
    # Query, key and value of the same size are packed into one parameter.
    inputs = ("q_proj", "k_proj", "v_proj") if attention.in_proj_weight is None else ("in_proj",)
    parameters = {part: f"{part}_weight" for part in inputs} | {"out_proj": "out_proj.weight"}
    return tuple(AttentionView(attention, part, parameter) for part, parameter in parameters.items())


def _boxes(size: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Split the flattened positions start..stop-1 into boxes, in order."""
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


def core_view(module: nn.Module) -> LayerView | tuple[LayerView, ...] | ChannelFollower | None:
    """Return the view, or views, of a layer of PyTorch, or its channel follower; ``None`` for any other module."""
    # Transposed convolutions do not inherit from these three.
    if isinstance(module, nn.Linear):
        return LinearView(module)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvolutionView(module)
    if isinstance(module, nn.MultiheadAttention):
        return _projections(module)
    return core_follower(module)
