"""The matrix products of sparse layers, each in one or more forms.

``MatrixProduct`` is one matrix for the flat input of a sample: a linear layer, or an unrolled layer of another kind.
``TapProducts`` is a convolution as one small matrix per kernel tap. The form "vectors" multiplies sample by sample,
"columns" many samples at once; "taps" is the only form of convolutions. Each product lists its ``forms`` and, in
``usual``, the form per number of samples to use without measurements. This module must not know views or networks.
"""

import itertools
import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.deployment.sparse.csr_matrix import CompressedRows
from prunekit.distributed.torch_internals import reversed_padding
from prunekit.errors import ConfigError

# Samples per matrix product: 4096 x 4096 at density 0.12 takes 7.2 ms for 128 samples in four products, 10.3
# ms in one, 8.4 ms in eight; 512 samples 29, 45 and 32 ms (two cores with 1 MiB of cache each, AVX-512).
SAMPLES_PER_PRODUCT = 32


class MatrixProduct(nn.Module):
    """Computes outputs = matrix x flat inputs + constant for each sample.

    Args:
        matrix: ``[flat outputs, flat inputs]``.
        constant: ``[flat outputs]``.
        input_shape: shape of one sample; all leading dimensions of the inputs count samples.
        output_shape: shape of the outputs of one sample.
    """

    forms = ("vectors", "columns")
    # The forms are equally fast at two samples; "columns" is faster at four.
    usual: ClassVar[dict[int, str]] = {1: "vectors", 4: "columns"}
    constant: Tensor

    def __init__(
        self,
        matrix: CompressedRows,
        constant: Tensor,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("constant", constant)
        self.input_shape, self.output_shape = input_shape, output_shape
        self.outputs, self.inputs = matrix.shape

    def size(self, inputs: Tensor) -> int:
        """Return the number of samples in the inputs."""
        return inputs.numel() // self.inputs

    def forward(self, inputs: Tensor, form: str) -> Tensor:
        """Return the outputs, contiguous."""
        leading = inputs.shape[: inputs.dim() - len(self.input_shape)]
        if inputs.shape[len(leading) :] != self.input_shape:
            raise ConfigError(
                f"a layer that runs sparse takes samples of {list(self.input_shape)}, got inputs of "
                f"{list(inputs.shape)}; call run_sparse with a sample input of that size"
            )
        flat = inputs.reshape(-1, self.inputs)
        matrix, constant = self.matrix.tensor(), self.constant
        outputs = flat.new_empty(len(flat), self.outputs)
        if form == "vectors":
            for number in range(len(flat)):
                torch.addmv(constant, matrix, flat[number], out=outputs[number])
        else:
            inputs_and_outputs = (torch.split(each, SAMPLES_PER_PRODUCT) for each in (flat, outputs))
            for samples, into in zip(*inputs_and_outputs, strict=True):
                torch.add(torch.mm(matrix, samples.t().contiguous()).t(), constant, out=into)
        return outputs.reshape(*leading, *self.output_shape)


class TapProducts(nn.Module):
    """A convolution as a sum over kernel taps: matrix ``[maps, channels]`` x the image shifted by the tap.

    The padded image is flat, so a shifted image is a slice of it and nothing is unfolded; values computed between the
    rows of the output are discarded. With a stride, the image is first split into one image per remainder.

    Args:
        convolution: the layer, with any groups, stride, padding, padding mode and dilation.
    """

    forms = ("taps",)
    usual: ClassVar[dict[int, str]] = {1: "taps"}
    constant: Tensor

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self.register_buffer("constant", weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
        self.stride = convolution.stride
        self.mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
        # The attribute that forward uses; it also resolves padding="same". Last dimension first.
        self.margins: list[int] = reversed_padding(convolution)
        self.extents = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
        ]
        self.matrices = nn.ModuleList()
        self.offsets: list[tuple[int, ...]] = []
        maps_of_group, channels_of_group = len(weight) // convolution.groups, weight.shape[1]
        taps = itertools.product(*map(range, convolution.kernel_size))
        for tap, part in zip(taps, weight.flatten(2).unbind(2), strict=True):
            rows, columns = part.nonzero(as_tuple=True)
            if len(rows):
                channels = columns + rows // maps_of_group * channels_of_group
                shape = (len(weight), convolution.in_channels)
                self.matrices.append(CompressedRows.from_entries(rows, channels, part[rows, columns], shape))
                self.offsets.append(tuple(at * step for at, step in zip(tap, convolution.dilation, strict=True)))

    def size(self, inputs: Tensor) -> int:
        """Return the number of samples in the inputs."""
        return len(inputs) if inputs.dim() == len(self.stride) + 2 else 1

    def forward(self, inputs: Tensor, form: str) -> Tensor:
        """Return the outputs, contiguous."""
        batched = inputs.dim() == len(self.stride) + 2
        images = F.pad(inputs if batched else inputs.unsqueeze(0), self.margins, mode=self.mode)
        sizes = [
            (size - extent) // step + 1
            for size, extent, step in zip(images.shape[2:], self.extents, self.stride, strict=True)
        ]
        if min(sizes) < 1:
            raise ConfigError(
                f"a convolution with a reach of {self.extents} got inputs of {list(inputs.shape)}; give larger ones"
            )
        # The grid on which images are shifted: the outputs plus the reach of the kernel.
        grid = [
            size + (extent - 1) // step for size, extent, step in zip(sizes, self.extents, self.stride, strict=True)
        ]
        parted = self._parted(images, grid)
        pitches = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        length = sum((size - 1) * pitch for size, pitch in zip(sizes, pitches, strict=True)) + 1
        sums = images.new_empty(len(self.constant), sizes[0] * pitches[0])
        outputs = images.new_empty(len(images), len(sums), *sizes)
        wanted = sums.view(len(sums), sizes[0], *grid[1:])
        for axis, size in enumerate(sizes):
            wanted = wanted.narrow(axis + 1, 0, size)
        moves = [self._move(offset, pitches) for offset in self.offsets]
        matrices = [cast("CompressedRows", matrix).tensor() for matrix in self.matrices]
        for image, into in zip(parted, outputs, strict=True):
            sums.copy_(self.constant.unsqueeze(1))
            for (part, start), matrix in zip(moves, matrices, strict=True):
                sums[:, :length].addmm_(matrix, image[part, :, start : start + length])
            into.copy_(wanted)
        return outputs if batched else outputs[0]

    def _parted(self, images: Tensor, grid: list[int]) -> Tensor:
        """Return ``[samples, remainders, channels, flat grid]``."""
        stretched = [cells * step for cells, step in zip(grid, self.stride, strict=True)]
        ends = [wanted - size for wanted, size in zip(stretched, images.shape[2:], strict=True)]
        images = F.pad(images, [amount for end in reversed(ends) for amount in (0, end)])
        split = images.reshape(*images.shape[:2], *itertools.chain(*zip(grid, self.stride, strict=True)))
        axes = range(2, split.dim())
        ordered = split.permute(0, *axes[1::2], 1, *axes[::2])
        return ordered.reshape(len(images), math.prod(self.stride), images.shape[1], math.prod(grid))

    def _move(self, offset: tuple[int, ...], pitches: list[int]) -> tuple[int, int]:
        """Return the remainder image that a tap reads, and the offset in it."""
        part = start = 0
        for distance, step, pitch in zip(offset, self.stride, pitches, strict=True):
            part = part * step + distance % step
            start += distance // step * pitch
        return part, start
