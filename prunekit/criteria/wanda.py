"""The criterion "wanda": magnitudes of weights times the norms of their inputs."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.sums import add, join, total, unfolded
from prunekit.masks.selection import Scope


@attrs.define(eq=False)
class Wanda(Criterion):
    """Keep the largest ``|w| * ||x||_2``, x being all inputs of the weight (Wanda: Sun et al., ICLR 2024).

    Equation (1) of the paper, for linear layers; each output unit keeps its share, as in the paper. In convolutions
    every position counts as a sample, including padding, so x holds all inputs of a kernel tap.
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})
    scope: ClassVar[Scope] = "unit"

    _squares: Tensor | None = attrs.field(default=None, init=False)  # [G, fan]

    def observe(self, seen: Observation) -> None:
        """Add the squared inputs of a batch."""
        for inputs in unfolded(seen.layer, seen.inputs):
            self._squares = add(self._squares, inputs.square().sum(1))

    def end_pass(self) -> bool:
        """Add up the sums of all ranks."""
        self._squares, _ = join(self._squares)
        return False

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``|w| * ||x||_2``: float64 ``[G, out, fan]``.

        Raises:
            DataError: no batch was observed.
        """
        return weight.abs() * total(self._squares, self.name, "data").sqrt().unsqueeze(1)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Wanda]
