"""The two LeNets that pruning papers use, as 28x28 grey images define them. This module must not know data or training.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition" (Proc. IEEE 1998) has
LeNet-300-100; LeNet-5 is the wider one that comes with Caffe, with a ReLU after every layer but the last.
"""

from typing import ClassVar

from torch import Tensor, nn


class LeNet300(nn.Module):
    """Three linear layers, ``fc1`` to ``fc3``: images ``[samples, *shape]`` to scores ``[samples, classes]``."""

    activation_of: ClassVar[dict[str, str]] = {"fc1": "relu1", "fc2": "relu2"}

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        colours, rows, columns = shape
        self.fc1 = nn.Linear(colours * rows * columns, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        hidden = self.relu1(self.fc1(images.flatten(1)))
        scores: Tensor = self.fc3(self.relu2(self.fc2(hidden)))
        return scores


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each pooled to half, and two linear layers: ``conv1``, ``conv2``, ``fc1``, ``fc2``."""

    activation_of: ClassVar[dict[str, str]] = {"conv1": "relu1", "conv2": "relu2", "fc1": "relu3"}

    LEAST_SIDE: ClassVar[int] = 16
    """Below, the second pooling leaves nothing."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        colours, *sides = shape
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in sides)
        self.conv1 = nn.Conv2d(colours, 20, 5)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * rows * columns, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``[samples, classes]``."""
        values = self.pool(self.relu1(self.conv1(images)))
        values = self.pool(self.relu2(self.conv2(values)))
        scores: Tensor = self.fc2(self.relu3(self.fc1(values.flatten(1))))
        return scores
