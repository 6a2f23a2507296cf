"""The task: image classification, put together from data, batches and networks.

This module must not know how any of them works.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.options import option
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare
from prunekit_images.batches import Batch, PlainBatches, Scale, TrainingBatches
from prunekit_images.data import ImageData, divide
from prunekit_images.networks import build_network, check_network
from prunekit_images.presets import BATCH, DIGITS_BATCH, DIGITS_EPOCHS, PRESETS
from prunekit_images.sources import read_images

MOST_VALIDATION = 5000
"""Where accuracy is 0.98 its standard error is then 0.002; a tenth of the images where that is fewer."""

EVALUATION_BATCH = 500


def _preset(text: str, **limits: Any) -> Any:
    """Declare an option whose default is the network's value of the same name."""
    return option(None, f"{text}; default: the network's", **limits)


@attrs.define(slots=False, eq=False)
class ImageClassification(Task):
    """Classify small images: scikit-learn's digits, MNIST and its like, arrays, folders of images."""

    name: ClassVar[str] = "images"
    aliases: ClassVar[Mapping[str, str]] = {
        "all": "*",
        "attention": "*.attention.*",  # the projections of a vision transformer
    }
    structure: str = attrs.field(init=False, default="all=0.1")

    data: Path | None = option(None, ".npz file, folder of IDX files or of class folders; none: scikit-learn's digits")
    network: str = option("lenet-300-100", "what is trained", choices=tuple(PRESETS))
    width: int = _preset("channels of the first stage of resnet, values of a patch of vit", low=1, high=1024)
    blocks: int = _preset("blocks of vit, or of each of the three stages of resnet", low=1, high=64)
    image_size: int | None = option(None, "rows and columns to bring images of class folders to", low=4, high=256)
    _optimizer: str | None = _preset("optimiser; sgd has Nesterov momentum 0.9", choices=("sgd", "adamw"))
    learning_rate: float = _preset("base learning rate", low=0)
    weight_decay: float = _preset("decay of all parameters", low=0)
    batch_size: int | None = option(None, f"images in a batch; default: {BATCH}, of the digits {DIGITS_BATCH}", low=1)
    shift: int = option(0, "greatest random shift of a training image in pixels, each way", low=0, high=64)
    calibration: int | None = option(
        None, "training images held out for the statistics of neurons; default: a tenth, at most 1,000", low=1
    )
    validation: int | None = option(
        None,
        f"training images held out to choose with; default: none, or where evaluated on {MOST_VALIDATION:,}",
        low=0,
    )
    evaluate_on: str = option("test", "which images the figures are of", choices=("test", "validation"))
    data_seed: int = option(0, "chooses the images that are held out", low=0)

    def __attrs_post_init__(self) -> None:
        preset = PRESETS[self.network]
        for setting in ("width", "blocks"):
            given = getattr(self, setting)
            if given is not None and getattr(preset, setting) is None:
                raise ValueError(f"{setting} is {given}, but {self.network} has no such setting; leave it out")
        for field in attrs.fields(ImageClassification):
            if field.init and getattr(self, field.name) is None and hasattr(preset, str(field.alias)):
                setattr(self, field.name, getattr(preset, str(field.alias)))
        if self.batch_size is None:
            self.batch_size = DIGITS_BATCH if self.data is None else BATCH
        if self.validation is not None and self.validation == 0 and self.evaluate_on == "validation":
            raise ValueError("validation is 0, but evaluate_on asks for figures of validation images; hold some out")

    def training(self) -> Training:
        preset = PRESETS[self.network]
        times = DIGITS_EPOCHS if self.data is None else 1
        dense, retraining = (f"{times * epochs} epochs" for epochs in preset.epochs)
        return Training(budget=dense, retraining=retraining, warmup=preset.warmup)

    def setup(self, seeds: Seeds) -> str:
        check_network(self.network, self.images.shape)
        where = "digits of scikit-learn" if self.data is None else str(self.data)
        return f"{where}: {self.images}; network {self.network}; figures of {self.evaluate_on} images"

    @cached_property
    def images(self) -> ImageData:
        """The data, divided into its four sets."""
        train, test = read_images(self.data, self.image_size)
        validation = self.validation
        if validation is None:
            validation = min(MOST_VALIDATION, len(train) // 10) if self.evaluate_on == "validation" else 0
        where = str(self.data or "digits")
        return divide(train, test, Seeds(self.data_seed), self.calibration, validation, where)

    @cached_property
    def _scale(self) -> Scale:
        return Scale.of(self.images.train.pixels)

    def build_model(self) -> nn.Module:
        return build_network(self.network, self.images.shape, self.images.classes, self.width, self.blocks)

    def activations(self, network: nn.Module) -> Mapping[str, str]:
        names: Mapping[str, str] = network.activation_of  # type: ignore[assignment] # of a module nothing is known
        return names

    def batches(self, split: Split, epoch: int, seeds: Seeds) -> Sequence[Batch]:
        if split == "calibration":
            return PlainBatches(self.images.calibration, self._scale, EVALUATION_BATCH)
        assert self.batch_size is not None
        return TrainingBatches(self.images.train, self._scale, self.batch_size, self.shift, epoch, seeds)

    def batch_share(self, batches: Sequence[Batch], index: int, rank: int, ranks: int) -> BatchShare:
        if isinstance(batches, TrainingBatches):
            return batches.share(index, rank, ranks)
        return super().batch_share(batches, index, rank, ranks)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rate, decay = self.learning_rate, self.weight_decay
        if self._optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)

    def evaluate(self, model: nn.Module, device: torch.device) -> Evaluation:
        images = self.images.validation if self.evaluate_on == "validation" else self.images.test
        batches = PlainBatches(images, self._scale, EVALUATION_BATCH)
        scores = torch.cat([model(batches[index][0].to(device)).float().cpu() for index in range(len(batches))])
        return measured(scores, images.labels)


def measured(scores: Tensor, labels: Tensor) -> Evaluation:
    """Return accuracy and mean cross-entropy, each with the standard error of independently drawn images.

    Args:
        scores: ``[images, classes]``, before the softmax.
        labels: ``[images]``.
    """
    count = len(labels)
    accuracy = float((scores.argmax(1) == labels).double().mean())
    losses = F.cross_entropy(scores.double(), labels, reduction="none")
    errors = {
        "accuracy": (accuracy * (1 - accuracy) / count) ** 0.5,
        "loss": float(losses.std(correction=0)) / count**0.5,
    }
    return Evaluation("accuracy", {"accuracy": accuracy, "loss": float(losses.mean())}, errors)
