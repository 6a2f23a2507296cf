"""Leaving out optimiser steps whose loss or gradient is no number, as if their batches had never come.

What such a forward pass has done to the running statistics of a network is taken back. This module must not know how
many such steps are too many.
"""

from collections.abc import Iterable, Sequence
from math import inf

import torch
from torch import Tensor, nn

from prunekit.distributed.dtensor import local_shard
from prunekit.distributed.ranks import sum_over_ranks


class NonfiniteSteps:
    """Finds bad steps and undoes them. To ask whether a step is bad waits for the device."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model  # whose forward pass may put others in the place of its buffers
        self._before = [buffer.clone() for buffer in model.buffers()]

    def begin(self) -> None:
        """Note what a bad step is to be taken back to."""
        _copy(self._model.buffers(), self._before)

    def undo(self) -> None:
        """Bring the model's buffers back to where they were when the step began."""
        _copy(self._before, self._model.buffers())

    @staticmethod
    def is_bad(losses: Sequence[Tensor], parameters: Iterable[nn.Parameter], *, scaled: bool) -> bool:
        """Say whether a loss or gradient is infinite or no number, on any rank.

        Args:
            losses: of the step's batches, this rank's shares.
            parameters: with the step's gradients.
            scaled: a gradient scaler is at work. It leaves out steps itself until its scale fits, and not for bad ones.
        """
        total = torch.stack(list(losses)).sum()
        if not scaled:
            # Of a sharded model, each rank has a part, which may be empty.
            gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
            total = total + nn.utils.get_total_norm([gradient for gradient in gradients if gradient.numel()], inf)
        return bool(sum_over_ranks((~total.isfinite()).float()) > 0)


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for value, place in zip(source, target, strict=True):
        place.copy_(value)
