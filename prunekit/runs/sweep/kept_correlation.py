"""Measure the mean absolute correlation of the connections that a mask keeps, as in the paper's second table.

In a layer whose weights are shared over positions, all positions have equal weight. This module measures a network as
it is and must not know how it was pruned.
"""

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Observation
from prunekit.contracts.seeds import Seeds
from prunekit.layers.view import LayerView
from prunekit.pruning.observing import observe_batches
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.showing import BatchShower


@attrs.define
class _PerPosition(Criterion):
    """A correlation criterion whose scores are means over positions instead of sums."""

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
    prepared: PreparedRun,
    hardware: Hardware,
    seeds: Seeds,
    masks: Mapping[str, Tensor],
    correlation: Callable[[], Criterion],
) -> dict[str, float]:
    """Return layer -> mean absolute correlation of its kept connections, on the task's calibration set.

    Args:
        prepared: the run; its network is measured with its current weights.
        hardware: the device of the network.
        seeds: of the calibration batches.
        masks: layer -> bool of the weight's shape, on the device.
        correlation: returns a new criterion whose scores are sums of absolute correlations over positions.
    """
    layers: dict[str, LayerView] = {name: prepared.views[name] for name in masks}
    criteria = {name: _PerPosition(correlation()) for name in layers}
    shower = BatchShower(prepared.task, prepared.model, hardware, seeds, prepared.training.calibration_batches)
    activation_of = prepared.task.activations(prepared.network)
    observe_batches(prepared.network, layers, criteria, activation_of, shower.activations)
    means = {}
    for name, view in layers.items():
        weight = view.to_matrix(view.weight.detach())
        scores = criteria[name].score(weight, torch.Generator())
        means[name] = float(scores[view.to_matrix(masks[name])].double().mean())
    return means
