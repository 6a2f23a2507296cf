"""Sums over optimiser steps, for criteria whose ``needs`` name "training".

A hook on the optimiser sees weights and gradients as they are before each step. This module must not know stages,
schedules or how masks are held.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.contracts.criterion import Criterion
from prunekit.distributed.dtensor import full_tensor, local_shard, shard_like
from prunekit.layers.view import LayerView


def no_traces(layers: Mapping[str, LayerView]) -> dict[str, Tensor]:
    """Return layer -> float32 zeros of the weight's shape, on its device and sharded like it."""
    return {name: torch.zeros_like(view.weight.detach(), dtype=torch.float32) for name, view in layers.items()}


def forget_dropped(sums: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Reset the sums of dropped connections to 0, in place; a connection that comes back starts from 0."""
    for name, mask in masks.items():
        if name in sums:
            local_shard(sums[name]).mul_(local_shard(shard_like(mask, sums[name])))


@contextmanager
def tracing(
    criterion: Criterion, layers: Mapping[str, LayerView], sums: Mapping[str, Tensor], optimizer: Optimizer
) -> Iterator[None]:
    """Add ``criterion.trace`` of each layer to its sum, in place, at every step of the optimiser.

        sums = no_traces(layers)
        with tracing(Movement(), layers, sums, optimizer):
            train()

    Gradients are those that the step uses: summed over accumulated batches, unscaled, clipped, and masked if masks are
    held. A step that a gradient scaler skips adds nothing. The hook does not wait for the device. Sharded weights are
    gathered for it, one after another.

    Args:
        criterion: defines the terms.
        layers: layer -> view.
        sums: layer -> float32 of the weight's shape, as from ``no_traces``.
        optimizer: the optimiser of the layers' weights.
    """

    def before_step(*_: object) -> None:
        # A gradient scaler calls a fused optimiser even for a step to skip, which it marks with ``found_inf``.
        skipped = getattr(optimizer, "found_inf", None)
        for name, total in sums.items():
            view = layers[name]
            weight, gradient = view.weight, view.weight.grad
            if gradient is None:
                continue
            with torch.no_grad():
                term = criterion.trace(
                    view.to_matrix(full_tensor(weight)), view.to_matrix(full_tensor(gradient))
                ).float()
            term = term if skipped is None else torch.where(skipped.to(term.device) > 0, 0.0, term)
            local_shard(total).add_(local_shard(shard_like(view.from_matrix(term), total)))

    handle = optimizer.register_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()
