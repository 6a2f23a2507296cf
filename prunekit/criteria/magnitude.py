"""The criterion "magnitude": keep large weights. It needs no data and must not know any."""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.markers import hookimpl


@attrs.frozen
class Magnitude(Criterion):
    """Keep the connections with the largest absolute weights (Han et al., NeurIPS 2015)."""

    name: ClassVar[str] = "magnitude"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return |weight|, ``[G, out, fan]``."""
        return weight.abs()


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Magnitude]
