"""One plain training loop: batches, loss, backward, clipping, optimiser step.

It yields after every optimiser step, so that whoever drives it decides what happens in between. It must
not know stages, masks or checkpoints.
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
    """Return the factor on the learning rate at ``step`` (0 .. steps-1) of a stage.

    Warm-up rises linearly to 1 over ``warmup * steps`` steps; then the chosen decay falls to 0 at
    ``steps`` (or stays, with "constant").
    """
    warmup = settings.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    if settings.decay == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if settings.decay == "linear" else 1.0


def epoch_steps(batches: int, accumulate: int) -> int:
    """Return the optimiser steps of an epoch; left-over batches that fill no step are not used.

    Raises:
        DataError: when an epoch has too few batches for one step.
    """
    if batches < accumulate:
        raise DataError(
            f"an epoch has {batches} training batches, too few for one step of {accumulate}; "
            "use more data, smaller batches or less accumulation"
        )
    return batches // accumulate


@attrs.frozen
class Loop:
    """Takes optimiser steps; all state is in the model, the optimiser and the scaler.

    Attributes:
        task: gives batches and loss.
        model: what to call, compiled or not.
        optimizer: its groups' ``initial_lr`` are the base learning rates.
        scaler: of the hardware's precision.
        settings: how to train.
        hardware: where.
    """

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    settings: Training
    hardware: Hardware

    def set_rate(self, factor: float) -> float:
        """Set every group to ``factor`` times its base rate; return the first group's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def read(self, seeds: Seeds, epoch_length: int, first: int, last: int) -> Iterator[BatchShare]:
        """Yield this rank's parts of the batches of the steps ``first`` .. ``last - 1``, one epoch after another.

        Args:
            seeds: of the data's order.
            epoch_length: steps of an epoch.
            first: step to begin with, counted through all epochs from 0.
            last: step to stop before.
        """
        size = self.settings.accumulate
        stream = BatchStream(self.task, seeds, epoch_length * size)
        return read_ahead(
            stream, range(first * size, last * size), self.settings.workers, pinned=self.hardware.pins_memory
        )

    def steps(self, parts: Iterator[BatchShare], factors: Sequence[float]) -> Iterator[Tensor]:
        """Take a step for each factor and yield its mean loss, on the device.

        Where bad steps are to be left out, NaN stands for one.

        Of several processes each yields its share; the sum over the ranks is the loss.

        Args:
            parts: this rank's batches; as many as the steps need are taken.
            factors: one factor on the learning rate for each step.
        """
        # These walk through all modules, which takes a small network a tenth of a step.
        self.model.train()
        reshard(self.model)
        parameters = list(self.model.parameters())
        bad = NonfiniteSteps(self.model) if self.settings.skip_bad_steps else None
        ranks = rank_count()
        for factor in factors:
            self.set_rate(factor)
            yield self._step(islice(parts, self.settings.accumulate), ranks, parameters, bad)
            if not self.model.training:  # whoever is told of steps may have evaluated it
                self.model.train()

    def _step(
        self, parts: Iterator[BatchShare], ranks: int, parameters: list[nn.Parameter], bad: NonfiniteSteps | None
    ) -> Tensor:
        size, losses = self.settings.accumulate, []
        if bad is not None:
            bad.begin()
        for number, part in enumerate(parts, 1):
            check_share(part)
            moved = self.hardware.move(part.batch)
            with averaging(self.model, on=number == size):
                with self.hardware.autocast():
                    loss = self.task.loss(self.model, moved)
                loss = weighted(loss if size == 1 else loss / size, part.share)
                # Gradients are averaged over the ranks, and are to be summed. torch's stubs leave backward untyped.
                self.scaler.scale(weighted(loss, ranks)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().float())
        # Also where nothing is clipped: whoever listens to the optimiser sees gradients of the loss.
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        if bad is not None and bad.is_bad(losses, parameters, scaled=self.scaler.is_enabled()):
            bad.undo()
            losses = [loss * math.nan for loss in losses]
        else:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return losses[0] if size == 1 else torch.stack(losses).sum()
