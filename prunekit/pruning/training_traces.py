"""What training shows of the weights: sums over optimiser steps, for criteria whose ``needs`` name "training".

It listens to an optimiser and sees weights and gradients as that does. It must not know stages, schedules or masks.
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
    """Return sums of nothing: layer -> float32 zeros of the weight's shape, where the weight is."""
    return {name: torch.zeros_like(view.weight.detach(), dtype=torch.float32) for name, view in layers.items()}


def forget_dropped(sums: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set the sums of what masks drop to 0, in place: should it come back, it begins anew."""
    for name, mask in masks.items():
        if name in sums:
            local_shard(sums[name]).mul_(local_shard(shard_like(mask, sums[name])))


@contextmanager
def tracing(
    criterion: Criterion, layers: Mapping[str, LayerView], sums: Mapping[str, Tensor], optimizer: Optimizer
) -> Iterator[None]:
    """Add ``criterion.trace`` of each layer to its sum, in place, at every step that the optimiser takes.

    Gradients are those that the step is taken with: summed over accumulated batches, unscaled, clipped, masked where
    masks are held already. A step that a gradient scaler leaves out adds nothing. Nothing waits for the device.
    Weights that are spread over processes are gathered for it, one after another.

    Args:
        criterion: defines what is summed.
        layers: by name.
        sums: layer -> float32 of the weight's shape, as ``no_traces`` gives them.
        optimizer: that steps the layers' weights.
    """

    def before_step(*_: object) -> None:
        # A fused optimiser is called for a step that is to be left out, too, and told so.
        left_out = getattr(optimizer, "found_inf", None)
        for name, total in sums.items():
            view = layers[name]
            weight, gradient = view.weight, view.weight.grad
            if gradient is None:
                continue
            with torch.no_grad():
                term = criterion.trace(
                    view.to_matrix(full_tensor(weight)), view.to_matrix(full_tensor(gradient))
                ).float()
            term = term if left_out is None else torch.where(left_out.to(term.device) > 0, 0.0, term)
            local_shard(total).add_(local_shard(shard_like(view.from_matrix(term), total)))

    handle = optimizer.register_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()
