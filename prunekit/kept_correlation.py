"""Mean absolute correlation of the connections that a mask keeps: what the paper's second table shows beside accuracy.

Of a layer whose weights are shared over positions, each position counts alike. This module measures a network as it
is; it must not know who pruned it, or how.
"""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from prunekit.criteria import Criterion, Observation
from prunekit.hardware import Hardware
from prunekit.layers import LayerView
from prunekit.observing import Evidence, observe
from prunekit.preparation import Prepared
from prunekit.seeds import Seeds
from prunekit.training import Shower


@attrs.define
class _PerPosition(Criterion):
    """A correlation criterion whose scores are means over positions, not sums."""

    name = "per-position"
    inner: Criterion
    positions: int = 1

    def observe(self, seen: Observation) -> None:
        self.positions = seen.layer.positions(seen.inputs)
        self.inner.observe(seen)

    def end_pass(self) -> bool:
        return self.inner.end_pass()

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.score(weight, generator) / self.positions


def kept_correlation(
    prepared: Prepared,
    hardware: Hardware,
    seeds: Seeds,
    masks: Mapping[str, Tensor],
    correlation: Callable[[], Criterion],
) -> dict[str, float]:
    """Return layer -> mean absolute correlation of its kept connections, on the task's calibration set.

    Args:
        prepared: the run; its network is measured with the weights that it has.
        hardware: where it is.
        seeds: of the calibration batches.
        masks: layer -> mask of the weight's shape.
        correlation: makes a fresh criterion whose scores are sums of absolute correlations over positions.
    """
    layers: dict[str, LayerView] = {name: prepared.views[name] for name in masks}
    criteria = {name: _PerPosition(correlation()) for name in layers}
    shower = Shower(prepared.task, prepared.model, hardware, seeds, prepared.training.calibration_batches)
    evidence = Evidence(shower.activations, activation_of=prepared.task.activations(prepared.network))
    observe(prepared.network, layers, criteria, evidence, shower.activations)
    means = {}
    for name, view in layers.items():
        weight = view.to_matrix(view.weight.detach())
        scores = criteria[name].score(weight, torch.Generator())
        means[name] = float(scores[view.to_matrix(masks[name])].double().mean())
    return means
