"""The criterion "lamp": magnitudes made comparable across layers. It needs no data and must not know any."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.markers import hookimpl
from prunekit.masks.selection import Scope


@attrs.frozen
class Lamp(Criterion):
    """Keep weights that are large relative to the larger weights of their layer (LAMP: Lee et al., ICLR 2021).

    With the weights of a layer in ascending order of magnitude, the score of weight u is
    ``w_u^2 / sum of w_v^2 over v >= u``. Within a layer it ranks weights like magnitude does. Across layers (scope
    "global", its default) it allocates the density, and every layer keeps at least its largest weight, whose score is
    1. Among weights of the same magnitude the later one has the higher score, as in the paper. A weight of 0 scores 0.
    """

    name: ClassVar[str] = "lamp"
    scope: ClassVar[Scope] = "global"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the scores: float64 ``[G, out, fan]``, in [0, 1]."""
        squares, order = weight.double().square().flatten().sort(stable=True)
        tails = squares.flip(0).cumsum(0).flip(0)
        ratios = torch.where(squares > 0, squares / tails, 0.0)
        return torch.empty_like(ratios).scatter_(0, order, ratios).reshape(weight.shape)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Lamp]
