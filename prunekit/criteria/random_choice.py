"""The criterion "random": the control of every comparison. It needs no data and must not know any."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.markers import hookimpl


@attrs.frozen
class RandomChoice(Criterion):
    """Keep connections drawn uniformly at random."""

    name: ClassVar[str] = "random"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return uniform float32 numbers in [0, 1), ``[G, out, fan]``, the same on every device."""
        return torch.rand(weight.shape, generator=generator).to(weight.device)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [RandomChoice]
