"""The criterion "movement": keep weights that move away from zero in training. It needs no data of its own."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need
from prunekit.contracts.markers import hookimpl


@attrs.define
class Movement(Criterion):
    """Keep the connections whose weights move away from zero in training (Sanh et al., movement pruning, 2020).

    The score is first-order, summed over the optimiser steps t of the stage:

        S = - sum over t of dL/dW(t) W(t)

    which is positive if the steps against the gradient made |W| larger. It is the paper's score with hard top-k masks,
    up to a constant factor (the learning rate of the scores); a dropped weight is 0 here and adds nothing. An update at
    the beginning of a stage uses the sum of the stage before. The criterion needs a schedule that trains before it
    prunes, such as "gradual" or "one-shot", so ``prunekit.select`` cannot use it.
    """

    name: ClassVar[str] = "movement"
    needs: ClassVar[frozenset[Need]] = frozenset({"training"})

    _total: Tensor | None = attrs.field(default=None, init=False)

    def trace(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return -dL/dW W, ``[G, out, fan]``."""
        return -gradient * weight

    def take_trace(self, total: Tensor) -> None:
        self._total = total

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum of ``-dL/dW W``, ``[G, out, fan]``."""
        assert self._total is not None, "take_trace comes before score"
        return self._total


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Movement]
