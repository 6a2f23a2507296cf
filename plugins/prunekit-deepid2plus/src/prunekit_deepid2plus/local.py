"""Locally connected layers: a convolution whose weights are not shared over positions.

The layer, and the view in which prunekit's criteria see it: every output position is a group of its own.
This module must not know faces, networks or tasks.
"""

import math

import torch
from torch import Tensor, nn

from prunekit.layers.view import LayerView


class LocallyConnected2d(nn.Module):
    """A two-dimensional convolution without padding that has weights of its own at every output position.

    The weight is ``[rows, columns, out, in, kernel rows, kernel columns]`` over the output positions, the bias
    ``[rows, columns, out]``. Inputs are ``[samples, in, H, W]`` in any memory order, outputs
    ``[samples, out, rows, columns]``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        input_size: rows and columns of the input; as the weights belong to positions, it is fixed.
        kernel_size: rows and columns of the kernel are both this.
        stride: input positions between two output positions.
        bias: whether to add a learned bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: tuple[int, int],
        kernel_size: int,
        stride: int = 1,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.input_size = input_size
        self.kernel_size = kernel_size
        self.stride = stride
        rows, columns = ((size - kernel_size) // stride + 1 for size in input_size)
        self.output_size = (rows, columns)
        # Six dimensions: Module.to(memory_format=channels_last) reorders four and refuses five.
        self.weight = nn.Parameter(torch.empty(*self.output_size, out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(*self.output_size, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as He et al. (2015) do for rectifiers, by the fan of one position; biases are 0."""
        fan = self.in_channels * self.kernel_size**2
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def unfolded(self, inputs: Tensor) -> Tensor:
        """Return a copy of the inputs of each output position: ``[positions, samples, fan]``."""
        # The function's backward is one pass; that of two Tensor.unfold fills and adds a large tensor each.
        windows = nn.functional.unfold(inputs, self.kernel_size, stride=self.stride)
        return windows.permute(2, 0, 1).contiguous()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs: one batched product over all positions."""
        taken = self.unfolded(inputs)
        positions, samples, fan = taken.shape
        weight = self.weight.reshape(positions, self.out_channels, fan).transpose(1, 2)
        if self.bias is None:
            outputs = torch.bmm(taken, weight)
        else:
            outputs = torch.baddbmm(self.bias.reshape(positions, 1, self.out_channels), taken, weight)
        return outputs.reshape(*self.output_size, samples, self.out_channels).permute(2, 3, 0, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, bias={self.bias is not None}"
        )


class LocalView(LayerView):
    """``LocallyConnected2d``: G = output positions, M = 1."""

    kind = "locally connected"
    groups_are_positions = True
    channel_axis = -3
    module: LocallyConnected2d

    def __init__(self, module: LocallyConnected2d) -> None:
        fan_shape = (module.in_channels, module.kernel_size, module.kernel_size)
        super().__init__(module, math.prod(module.output_size), module.out_channels, fan_shape)

    def positions(self, inputs: Tensor) -> int:
        return 1

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        return self.module.unfolded(inputs.detach()).unsqueeze(1)[:, positions]

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        return outputs.permute(2, 3, 0, 1).reshape(self.groups, 1, -1, self.outputs)[:, positions]

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        module = self.module
        module.in_channels, module.out_channels = channels, outputs
        place = (*module.output_size, outputs)
        self.renew((*place, channels, module.kernel_size, module.kernel_size), place if bias else None)

    def cells(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return the pixels: ``[pixels, samples, channels]``."""
        return inputs.detach().permute(2, 3, 0, 1).flatten(0, 1)

    def taps(self, inputs: Tensor, positions: Tensor) -> Tensor:
        kernel, columns = torch.arange(self.module.kernel_size), self.module.input_size[1]
        offsets = kernel.unsqueeze(1) * columns + kernel
        rows, places = (torch.arange(size) * self.module.stride for size in self.module.output_size)
        return offsets.flatten().unsqueeze(1) + (rows.unsqueeze(1) * columns + places).flatten()
