"""The contract of a task: the network, its data, its loss, its optimiser and its evaluation.

The engine runs the training loop. A task is an attrs class; the arguments of its constructor are its options. It must
not know criteria, schedules or masks.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare, split_batch
from prunekit.distributed.fsdp import blocks_of

Split = Literal["train", "calibration"]


class Task(abc.ABC):
    """A learning problem: a network, batches, a loss, an optimiser and an evaluation.

        @attrs.define
        class Digits(Task):
            name = "digits"

            def build_model(self):
                return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

            def batches(self, split, epoch, seeds):
                order = torch.randperm(len(IMAGES), generator=seeds.generator("order", epoch))
                return [(IMAGES[chosen], LABELS[chosen]) for chosen in order.split(64)]

            def loss(self, model, batch):
                images, labels = batch
                return cross_entropy(model(images), labels)

            def optimizer(self, model):
                return torch.optim.SGD(model.parameters(), lr=0.1)

            def evaluate(self, model, device):
                right = model(TEST_IMAGES.to(device)).argmax(1).cpu() == TEST_LABELS
                return Evaluation("accuracy", {"accuracy": right.float().mean()})

    Class attributes:
        name: the task's name on the command line and in recipes.
        aliases: short layer names for ``--structure``: alias -> module name in the deployed network. If that contains
            several networks, a glob stands for the same layer of each, which ``layerwise`` prunes in one stage.
        structure: the default of ``--structure``; "" if there is no sensible one.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}
    structure: str = ""

    def training(self) -> Training:
        """Return the training settings that suit this task; a user can override each of them."""
        return Training()

    def setup(self, seeds: Seeds) -> str:
        """Find and check the data. Called once, before all other methods, so that bad data is reported at once.

        Returns:
            One line that describes the data, for the headline of the run.

        Raises:
            DataError: there are too few data, or some cannot be read.
        """
        return ""

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Return a new model to train, initialised from torch's global generator.

        The engine seeds that generator first. ``prunekit plan`` calls this method on the "meta" device.
        """

    def deployed(self, model: nn.Module) -> nn.Module:
        """Return the part of the model that is pruned, counted and saved: all of it except heads only for training."""
        return model

    def activations(self, network: nn.Module) -> Mapping[str, str]:
        """Return layer name -> name of the module in the deployed network whose output is the layer's activation.

        A layer without an entry is its own activation.
        """
        return {}

    @abc.abstractmethod
    def batches(self, split: Split, epoch: int, seeds: Seeds) -> Sequence[Any]:
        """Return one epoch as a sequence of batches, with ``len`` and ``[i]``.

        Batch i must depend only on (split, epoch, seeds, i), so that a run can resume within an epoch and worker
        processes change nothing. A batch is a tensor or nested tuples, lists and dicts of tensors.

        Args:
            split: "train", shuffled and augmented anew each epoch, or "calibration", the samples on which criteria
                observe activations, preferably disjoint from the training set.
            epoch: index of the epoch, from 0.
            seeds: the seeds for shuffling and augmentation.
        """

    def batch_share(self, batches: Sequence[Any], index: int, rank: int, ranks: int) -> BatchShare:
        """Return one rank's share of ``batches[index]``; the shares of all ranks make up the batch.

        The default loads the whole batch and takes consecutive samples, along the first dimension of every tensor.
        Override it if samples are not the first dimension, if the loss is not a mean over samples, or to load only the
        samples needed.

        Args:
            batches: an epoch, from ``batches``.
            index: index of the batch in the epoch, from 0.
            rank: index of this process, from 0.
            ranks: number of processes.
        """
        return split_batch(batches[index], rank, ranks)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model on a calibration batch and return its output; the default input is the batch's first entry."""
        return model(batch[0] if isinstance(batch, tuple | list) else batch)

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the scalar training loss of a batch that is already on the right device.

        With several processes, ``batch`` is this rank's share, and the loss of the whole batch is the mean over the
        ranks, weighted by ``BatchShare.share``. The loss must therefore be a mean over samples; a loss over pairs of
        samples must gather the samples of all ranks with ``prunekit.distributed.ranks.gather_samples``. Call ``model``
        as a whole rather than its submodules: it may be a wrapper that averages gradients.
        """

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the modules that FSDP shards and gathers one at a time, inner modules before outer ones.

        Each of them must be called as a module; its parameters are whole while it computes. The default is the direct
        children of the deployed network, then the network. Override it if most parameters are in one of these children.
        """
        network = self.deployed(model)
        return [*blocks_of(network), network]

    @abc.abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimiser with its base learning rates; the engine scales them over a stage."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> Evaluation:
        """Return the figures of the model on the test data; called in evaluation mode, in ``torch.inference_mode``."""
