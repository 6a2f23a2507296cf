"""The contract of a task: what is being learned.

A task gives the network, the batches, the loss, the optimiser and the evaluation; the engine does the
loops. A task is an attrs class; its constructor's arguments are its options. It must not know criteria,
schedules or masks.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.options import option
from prunekit.contracts.schedule import Budget
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.batch_shares import Part, split_batch
from prunekit.distributed.fsdp import blocks_of

Split = Literal["train", "calibration"]


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    """Return plain numbers: a forgotten ``.item()`` would fail where they are written."""
    return {name: float(value) for name, value in values.items()}


@attrs.frozen
class Evaluation:
    """Named figures of a trained network.

    Attributes:
        primary: the name of the one that tables show.
        metrics: name -> value; fractions, not percent.
        standard_errors: name -> standard error, where one is known.
    """

    primary: str
    metrics: Mapping[str, float] = attrs.field(converter=_floats)
    standard_errors: Mapping[str, float] = attrs.field(factory=dict, converter=_floats)


@attrs.frozen
class Training:
    """How to train: the task's defaults, which the ``[training]`` section of a recipe overrides."""

    budget: str = option("10 epochs", "length of the dense training: '600 steps' or '12 epochs'")
    retraining: str = option("5 epochs", "length of each stage after it")
    decay: str = option("cosine", "fall of the learning rate within a stage", choices=("cosine", "linear", "constant"))
    warmup: float = option(0.0, "fraction of a stage in which the learning rate rises linearly", low=0, high=1)
    retraining_rate: float = option(
        1.0, "factor on the learning rates of stages that go on from trained weights", low=0
    )
    accumulate: int = option(1, "batches whose gradients are averaged into one optimiser step", low=1)
    clip_norm: float | None = option(None, "greatest norm of the whole gradient", low=0)
    precision: str = option("fp32", "arithmetic of forward and backward", choices=("fp32", "bf16", "fp16"))
    tf32: bool = option(False, "let a GPU round the factors of fp32 products to TF32, never in statistics")
    channels_last: bool = option(False, "keep images and convolutions in channels-last memory order")
    compile: bool = option(False, "run the model through torch.compile")
    fused: bool = option(False, "take the optimiser's step in one kernel; of SGD, Adam, AdamW, Adagrad")
    parallel: str = option(
        "ddp", "with several processes: each has the whole model, or a part (fsdp)", choices=("ddp", "fsdp")
    )
    workers: int = option(0, "processes that prepare batches; 0: the main process", low=0)
    checkpoint_every: int = option(0, "optimiser steps between checkpoints; 0: only at the end of a stage", low=0)
    skip_bad_steps: int = option(
        0,
        "most steps of a run left out for a loss or gradient that is no number (each step waits for the device)",
        low=0,
    )
    keep_checkpoints: int = option(2, "checkpoints of steps that stay in the run folder, the newest ones", low=1)
    check_every: int = option(20, "optimiser steps between two looks at the loss (each waits for the device)", low=1)
    calibration_batches: int = option(0, "most batches a criterion observes; 0: the whole calibration set", low=0)


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


def budget_of(training: Training) -> tuple[Budget, Budget]:
    """Return the dense budget and the re-training budget.

    Raises:
        ConfigError: when one of them is not understood.
    """
    return Budget.parse(training.budget), Budget.parse(training.retraining)
