"""A small residual network for small images: He, Zhang, Ren, Sun, "Deep Residual Learning" (CVPR 2016), section 4.2.

Three stages of blocks of two 3x3 convolutions; a stage after the first halves the image and doubles the channels. Where
that changes the shape, the shortcut is a 1x1 convolution. This module must not know data or training.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

STAGES = 3


class Block(nn.Module):
    """Two convolutions, each normalised, around which the input is added."""

    activation_of: ClassVar[dict[str, str]] = {"conv1": "relu1"}

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()
        self.shortcut_norm = nn.BatchNorm2d(outputs) if changes else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        """Return ``[samples, outputs, rows / stride, columns / stride]``."""
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(values)))))
        outputs: Tensor = self.relu2(inner + self.shortcut_norm(self.shortcut(values)))
        return outputs


class ResNet(nn.Module):
    """Images ``[samples, *shape]`` to scores ``[samples, classes]``; 6 * blocks + 2 layers, shortcuts not counted.

    Its prunable layers are ``conv``, ``block1.conv1``, ``block1.conv2``, ... with ``shortcut`` where there is one, and
    ``fc``.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.blocks = [f"block{number}" for number in range(1, STAGES * blocks + 1)]
        channels = width
        for number, name in enumerate(self.blocks):
            outputs = width * 2 ** (number // blocks)
            stride = 2 if number and number % blocks == 0 else 1
            self.add_module(name, Block(channels, outputs, stride))
            channels = outputs
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def activation_of(self) -> dict[str, str]:
        """Layer -> the module whose output is its activation; what is added to a shortcut counts as its own."""
        inner = {f"{name}.{layer}": f"{name}.{at}" for name in self.blocks for layer, at in Block.activation_of.items()}
        return {"conv": "relu", **inner}

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        values = self.relu(self.norm(self.conv(images)))
        for name in self.blocks:
            values = self.get_submodule(name)(values)
        scores: Tensor = self.fc(torch.mean(values, (2, 3)))
        return scores
