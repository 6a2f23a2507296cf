"""A third-party criterion: |weight| times the size of the inputs that the weight multiplies."""

import attrs
import torch

from prunekit import Criterion, Observation, hookimpl, option


@attrs.define
class ActivationWeighted(Criterion):
    """Keep weights that are large where the inputs are large (after Wanda, Sun et al., 2023)."""

    name = "activation-weighted"
    needs = frozenset({"activations"})
    scope = "unit"
    power: float = option(2.0, "the size is (sum of |input| ** power) ** (1 / power); 2: the L2 norm", low=0.1)
    _total: torch.Tensor | float = attrs.field(default=0.0, init=False)

    def observe(self, seen: Observation) -> None:
        inputs = seen.layer.inputs_at(seen.inputs, slice(None))  # [G, positions, samples, fan]
        self._total += inputs.double().abs().pow(self.power).sum((1, 2))  # [G, fan]

    def score(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        size = self._total ** (1 / self.power)
        return weight.abs() * size.unsqueeze(1).to(weight.dtype)  # [G, out, fan]


@hookimpl
def prunekit_criteria() -> list[type[Criterion]]:
    return [ActivationWeighted]
