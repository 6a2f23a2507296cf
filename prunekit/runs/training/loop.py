"""The training loop: batches, loss, backward pass, clipping, optimiser step.

It yields after every optimiser step, so that its caller decides what happens between steps. It must not know stages,
masks or checkpoints.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Task
from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare
from prunekit.distributed.ddp import averaging
from prunekit.distributed.dtensor import reshard
from prunekit.distributed.ranks import rank_count
from prunekit.errors import DataError
from prunekit.runs.training.batches import BatchStream, check_share, read_ahead, weighted
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.nonfinite_steps import NonfiniteSteps


def rate_factor(settings: Training, step: int, steps: int) -> float:
    """Return the factor on the learning rate at a step of a stage.

    >>> rate_factor(Training(decay="linear"), step=25, steps=100)
    0.75

    The factor rises linearly to 1 over the first ``warmup * steps`` steps. Then it falls to 0 at ``steps``, or remains
    1 with "constant".

    Args:
        settings: warm-up and decay.
        step: from 0 to ``steps - 1``.
        steps: length of the stage.
    """
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    if settings.decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if settings.decay == "linear" else 1.0


def epoch_steps(batches: int, accumulate: int) -> int:
    """Return the number of optimiser steps in an epoch; remaining batches that do not fill a step are not used.

    >>> epoch_steps(batches=7, accumulate=3)
    2

    Raises:
        DataError: when an epoch has too few batches for one step.
    """
    if batches < accumulate:
        raise DataError(
            f"an epoch has {batches} training batches, but one step needs training.accumulate={accumulate}; use more "
            "data, smaller batches or less accumulation"
        )
    return batches // accumulate


@attrs.frozen
class Loop:
    """Takes optimiser steps; all state is in the model, the optimiser and the scaler.

    Attributes:
        task: supplies batches and loss.
        model: the module to call, compiled or not.
        optimizer: of the model's parameters; ``initial_lr`` of its groups are the base learning rates.
        scaler: the gradient scaler for the hardware's precision.
        settings: how to train.
        hardware: where to compute.
    """

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Training
    hardware: Hardware

    def set_rate(self, factor: float) -> float:
        """Set the learning rate of each group to ``factor`` times its base rate; return the first group's."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def read(self, seeds: Seeds, epoch_length: int, first: int, last: int) -> Iterator[BatchShare]:
        """Yield this rank's shares of the batches for the steps ``first`` to ``last - 1``, through all epochs.

        Args:
            seeds: of the order of the data.
            epoch_length: steps in an epoch.
            first: number of the first step, counted from 0 through all epochs.
            last: number of the step to stop before.
        """
        size = self.settings.accumulate
        stream = BatchStream(self.task, seeds, epoch_length * size)
        return read_ahead(
            stream, range(first * size, last * size), self.settings.workers, pinned=self.hardware.pins_memory
        )

    def steps(self, shares: Iterator[BatchShare], factors: Sequence[float]) -> Iterator[Tensor]:
        """Take one optimiser step for each factor, and yield this rank's share of its mean loss, a scalar.

        The sum of the shares over the ranks is the loss. For a skipped step, it is NaN. No step waits for the device,
        unless ``settings.skip_bad_steps`` is set.

        Args:
            shares: of the batches; each step takes ``settings.accumulate`` of them.
            factors: on the learning rate, one for each step.

        Raises:
            DataError: when a batch has fewer samples than there are ranks.
        """
        # Done once, because it visits all modules, which takes a tenth of a step of a small network.
        self.model.train()
        reshard(self.model)
        parameters = list(self.model.parameters())
        nonfinite = NonfiniteSteps(self.model) if self.settings.skip_bad_steps else None
        ranks = rank_count()
        for factor in factors:
            self.set_rate(factor)
            yield self._step(islice(shares, self.settings.accumulate), ranks, parameters, nonfinite)
            if not self.model.training:  # a listener may have evaluated it
                self.model.train()

    def _step(
        self,
        shares: Iterator[BatchShare],
        ranks: int,
        parameters: list[nn.Parameter],
        nonfinite: NonfiniteSteps | None,
    ) -> Tensor:
        size, losses = self.settings.accumulate, []
        if nonfinite is not None:
            nonfinite.begin()
        for number, own in enumerate(shares, 1):
            check_share(own)
            moved = self.hardware.move(own.batch)
            with averaging(self.model, on=number == size):
                with self.hardware.autocast():
                    loss = self.task.loss(self.model, moved)
                loss = weighted(loss if size == 1 else loss / size, own.share)
                # Gradients are averaged over the ranks, but must be summed. torch's stubs leave backward untyped.
                self.scaler.scale(weighted(loss, ranks)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().float())
        # Also without clipping: hooks of the optimiser must see the gradients of the loss itself.
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        if nonfinite is not None and nonfinite.is_bad(losses, parameters, scaled=self.scaler.is_enabled()):
            nonfinite.undo()
            losses = [loss * math.nan for loss in losses]
        else:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return losses[0] if size == 1 else torch.stack(losses).sum()
