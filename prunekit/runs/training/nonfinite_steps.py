"""Skip optimiser steps with a non-finite loss or gradient, as if those batches had never been seen.

Changes that such a forward pass made to running statistics are undone. This module must not know how many skipped steps
are too many.
"""

from collections.abc import Iterable, Sequence
from math import inf

import torch
from torch import Tensor, nn

from prunekit.distributed.dtensor import local_shard
from prunekit.distributed.ranks import sum_over_ranks


class NonfiniteSteps:
    """Detects optimiser steps with a non-finite loss or gradient, and undoes their effect on the model's buffers.

        nonfinite = NonfiniteSteps(model)
        nonfinite.begin()
        loss = forward_and_backward()
        if nonfinite.is_bad([loss], model.parameters(), scaled=False):
            nonfinite.undo()
        else:
            optimizer.step()

    Parameters need no copy: the optimiser has not changed them yet.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model  # not its buffers: a forward pass may replace them
        self._before = [buffer.clone() for buffer in model.buffers()]

    def begin(self) -> None:
        """Save the model's buffers before a step."""
        _copy(self._model.buffers(), self._before)

    def undo(self) -> None:
        """Restore the model's buffers to their values at ``begin``."""
        _copy(self._before, self._model.buffers())

    @staticmethod
    def is_bad(losses: Sequence[Tensor], parameters: Iterable[nn.Parameter], *, scaled: bool) -> bool:
        """Return whether a loss or gradient is NaN or infinite on any rank; all ranks must call it.

        It waits for the device.

        Args:
            losses: this rank's shares of the losses of the step's batches, scalars.
            parameters: of the model, with the gradients of the step.
            scaled: whether a gradient scaler is enabled. It skips steps by itself while its scale is too large, so
                only the losses count.
        """
        total = torch.stack(list(losses)).sum()
        if not scaled:
            # In a sharded model, this rank's shard of a gradient may be empty.
            gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
            total = total + nn.utils.get_total_norm([gradient for gradient in gradients if gradient.numel()], inf)
        return bool(sum_over_ranks((~total.isfinite()).float()) > 0)


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for value, place in zip(source, target, strict=True):
        place.copy_(value)
