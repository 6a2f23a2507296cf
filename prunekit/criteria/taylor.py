"""The criterion "taylor": the squared first-order change of the loss, batch by batch."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.sums import add, batch_gradient, total
from prunekit.masks.selection import Scope


@attrs.define(eq=False)
class Taylor(Criterion):
    """Keep the connections with the largest squared first-order effect on the loss (Molchanov et al., CVPR 2019).

    The score is ``(g * w)^2``, the first-order importance of a single parameter in the paper (section 3.1), with ``g``
    the gradient of one batch, summed over the batches. Unlike in "snip", gradients of opposite signs in two batches do
    not cancel. The paper averages over batches, which does not change the ranking, and sums the importances of a
    filter's parameters; the pattern ``Units`` does the same here.
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})
    scope: ClassVar[Scope] = "global"

    _squares: Tensor | None = attrs.field(default=None, init=False)

    def observe(self, seen: Observation) -> None:
        """Add the squared gradient of a batch."""
        gradient = batch_gradient(seen)
        if gradient is not None:
            self._squares = add(self._squares, gradient.square())

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum of ``(g * w)^2``: float64 ``[G, out, fan]``.

        Raises:
            DataError: no gradient was observed.
        """
        return total(self._squares, self.name, "gradients") * weight.double().square()


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Taylor]
