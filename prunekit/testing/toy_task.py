"""The toy task: images that are made up, a small network, a second of training. For trying plugins, and for tests.

It must not know criteria, schedules or how a run goes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.options import option
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.contracts.training import Training

_SIDE = 6  # pixels
_BATCH = 32
_BATCHES: dict[Split, int] = {"train": 10, "calibration": 3}
_TEST_IMAGES = 512
_WORLD = Seeds(2016)  # the classes and the test images are the same for every run


@attrs.frozen
class ToyImages(Sequence[tuple[Tensor, Tensor]]):
    """An epoch of noisy images of a few classes: batches of ``[32, 1, 6, 6]`` and labels ``[32]``."""

    split: Split
    epoch: int
    seeds: Seeds
    classes: int
    noise: float

    def __len__(self) -> int:
        return _BATCHES[self.split]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _draw(self.seeds.generator("toy", self.split, self.epoch, index), _BATCH, self.classes, self.noise)


@attrs.frozen
class ToyTask(Task):
    """Tell noisy 6 x 6 images apart: no files, a convolution, a grouped one, two linear layers, a second of training.

    ``prunekit run --task prunekit.testing:ToyTask --criterion YOURS`` tries a criterion on it.
    """

    name = "toy"
    aliases: ClassVar = {"a": "conv_a", "b": "conv_b"}
    structure = "hidden=1/4 b=1/2"

    classes: int = option(4, "how many classes", low=2)
    noise: float = option(1.0, "deviation of the noise; the classes themselves have deviation 1", low=0)

    def training(self) -> Training:
        return Training(budget="60 steps", retraining="20 steps")

    def setup(self, seeds: Seeds) -> str:
        return f"{self.classes} classes of noisy {_SIDE} x {_SIDE} images"

    def build_model(self) -> nn.Module:
        return ToyNetwork(self.classes)

    def activations(self, network: nn.Module) -> dict[str, str]:
        return {"conv_a": "relu_a", "conv_b": "relu_b", "hidden": "relu_hidden"}

    def batches(self, split: Split, epoch: int, seeds: Seeds) -> ToyImages:
        return ToyImages(split, epoch, seeds, self.classes, self.noise)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def evaluate(self, model: nn.Module, device: torch.device) -> Evaluation:
        images, labels = _draw(_WORLD.generator("test"), _TEST_IMAGES, self.classes, self.noise)
        hits = model(images.to(device)).argmax(1).cpu() == labels
        accuracy = float(hits.double().mean())
        error = (accuracy * (1 - accuracy) / len(hits)) ** 0.5
        return Evaluation("accuracy", {"accuracy": accuracy}, {"accuracy": error})


class ToyNetwork(nn.Module):
    """Two convolutions (the second in two groups, with stride) and two linear layers: 1,576 weights for 4 classes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(1, 8, 3, padding=1)
        self.relu_a = nn.ReLU()
        self.conv_b = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.relu_b = nn.ReLU()
        self.hidden = nn.Linear(72, 16)
        self.relu_hidden = nn.ReLU()
        self.classifier = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``[n, classes]`` of images ``[n, 1, 6, 6]``."""
        maps: Tensor = self.relu_b(self.conv_b(self.relu_a(self.conv_a(images))))
        scores: Tensor = self.classifier(self.relu_hidden(self.hidden(maps.flatten(1))))
        return scores


def _draw(generator: torch.Generator, count: int, classes: int, noise: float) -> tuple[Tensor, Tensor]:
    means = torch.randn(classes, 1, _SIDE, _SIDE, generator=_WORLD.generator("classes"))
    labels = torch.randint(classes, (count,), generator=generator)
    return means[labels] + noise * torch.randn(count, 1, _SIDE, _SIDE, generator=generator), labels
