"""A criterion of somebody else's: |weight| times the mean size of the input that the weight works on."""

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from prunekit import Criterion, Observation, hookimpl, option


@attrs.define
class ActivationWeighted(Criterion):
    """Keep weights that are large where the inputs are large (after Wanda, Sun et al., 2023)."""

    name = "activation-weighted"
    needs = frozenset({"activations"})
    scope = "unit"

    power: float = option(2.0, "the mean is of |input| ** power; 1 is the mean size, 2 the mean square", low=0.1)

    _total: Tensor | None = attrs.field(default=None, init=False)
    _samples: int = attrs.field(default=0, init=False)

    def observe(self, seen: Observation) -> None:
        """Add up |input| ** power for each connection, over samples and positions."""
        for first in range(0, seen.layer.positions(seen.inputs), 64):  # unfolded inputs are large; 64 positions at once
            inputs = seen.layer.inputs_at(seen.inputs, slice(first, first + 64))  # [G, m, samples, fan]
            total = inputs.double().abs().pow(self.power).sum((1, 2))  # [G, fan]
            self._total = total if self._total is None else self._total + total
            self._samples += inputs.shape[1] * inputs.shape[2]

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return |weight| times the mean of the inputs: ``[G, out, fan]``."""
        assert self._total is not None
        size = (self._total / self._samples).pow(1 / self.power)
        return weight.abs() * size.unsqueeze(1).to(weight.dtype)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Bring the criterion."""
    return [ActivationWeighted]
