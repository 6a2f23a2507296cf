"""The contract of a task: what is being learned.

A task gives the network, the batches, the loss, the optimiser and the evaluation; the engine does the
loops. A task is an attrs class; its constructor's arguments are its options. It must not know criteria,
schedules or masks.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import Part, split_batch
from prunekit.distributed.fsdp import blocks_of

Split = Literal["train", "calibration"]


class Task(abc.ABC):
    """What is being learned.

    Class attributes:
        name: what the user writes.
        aliases: short layer names for ``--structure``, alias -> module name in the deployed network, or a glob
            where that holds several networks: the same layer of each, which ``layerwise`` prunes in one stage.
        structure: the ``--structure`` used where the user gives none; "" if there is no sensible one.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}
    structure: str = ""

    def training(self) -> Training:
        """Return the training settings that suit this task; a recipe overrides single fields."""
        return Training()

    def setup(self, seeds: Seeds) -> str:
        """Find and check the data. Called once, first; whatever is wrong with the data surfaces here.

        Returns:
            One line that says what the data is, for the person who waits.

        Raises:
            DataError: when there is too little of it, or something cannot be read.
        """
        return ""

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Return the model to train, freshly initialised from torch's global generator.

        The engine seeds that generator before. ``prunekit plan`` calls this on the "meta" device.
        """

    def deployed(self, model: nn.Module) -> nn.Module:
        """Return the part of the model that is pruned, counted and saved; training-only heads stay out."""
        return model

    def activations(self, network: nn.Module) -> Mapping[str, str]:
        """Say which module gives a layer's activation: layer name -> module name in the deployed network.

        A layer that is not named counts as its own activation.
        """
        return {}

    @abc.abstractmethod
    def batches(self, split: Split, epoch: int, seeds: Seeds) -> Sequence[Any]:
        """Return one epoch as a sequence of batches (``len`` and ``[i]``).

        ``[i]`` must depend on (split, epoch, seeds, i) alone, so that a resumed run starts in mid-epoch and
        worker processes change nothing. A batch is a tensor or nested tuples, lists, dicts of tensors.
        "train" is shuffled and augmented anew each epoch; "calibration" is the set that neuron
        statistics are measured on, best disjoint from the training set.
        """

    def part(self, batches: Sequence[Any], index: int, rank: int, ranks: int) -> Part:
        """Return what one of several processes works on of ``batches[index]``; together they work on all of it.

        The default makes the whole batch and takes a run of its samples, the first dimension of every tensor. Override
        it where samples are something else, where a loss is no mean over samples, or to make only what is needed.
        """
        return split_batch(batches[index], rank, ranks)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model on a batch of the calibration set; the default takes its first entry as input."""
        return model(batch[0] if isinstance(batch, tuple | list) else batch)

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the scalar training loss of a batch, already on the right device.

        With several processes the batch is this rank's part, and the loss of the whole batch is the mean of the parts',
        weighted by ``Part.share``. So it has to be a mean over samples; what looks at several samples at once (pairs)
        takes those of all ranks: ``prunekit.distributed.ranks.gather_samples``. Call the model as it is given, not
        parts of it: it may be a wrapper that averages gradients.
        """

    def shards(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the modules that are gathered one after another where processes share a model out (``fsdp``).

        Each must be called as a module, and is whole while it computes; inner modules come before outer ones. The
        default: the parts that the deployed network is directly made of, then the network. Override it where most
        parameters are in one of these parts.
        """
        network = self.deployed(model)
        return [*blocks_of(network), network]

    @abc.abstractmethod
    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a fresh optimiser with its base learning rates; the engine scales them over a stage."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> Evaluation:
        """Measure the model, which is in evaluation mode, under ``torch.inference_mode``."""
