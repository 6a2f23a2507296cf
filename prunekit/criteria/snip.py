"""The criterion "snip": keep the weights whose removal would change the loss most, by its gradient."""

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
class Snip(Criterion):
    """Keep the connections to which the loss is most sensitive (SNIP: Lee, Ajanthan, Torr, ICLR 2019).

    The score is ``|g * w|``: the paper's without the division by the sum over the network, which does not change the
    ranking. ``g`` is the gradient of the loss summed over the training batches; the paper uses one batch, before
    training.
    """

    name: ClassVar[str] = "snip"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})
    scope: ClassVar[Scope] = "global"

    _gradient: Tensor | None = attrs.field(default=None, init=False)

    def observe(self, seen: Observation) -> None:
        """Add the gradient of a batch."""
        gradient = batch_gradient(seen)
        if gradient is not None:
            self._gradient = add(self._gradient, gradient)

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``|g * w|``: float64 ``[G, out, fan]``.

        Raises:
            DataError: no gradient was observed.
        """
        return (total(self._gradient, self.name, "gradients") * weight).abs()


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Snip]
