"""What training shows of the weights: sums over optimiser steps, for criteria whose ``needs`` name "training".

It listens to an optimiser and sees weights and gradients as that does. It must not know stages, schedules or masks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.criteria import Criterion
from prunekit.layers import LayerView


def no_traces(layers: Mapping[str, LayerView]) -> dict[str, Tensor]:
    """Return sums of nothing: layer -> float32 zeros ``[G, out, fan]`` on the weight's device."""
    matrices = ((name, view.to_matrix(view.weight.detach())) for name, view in layers.items())
    return {name: torch.zeros_like(matrix, dtype=torch.float32) for name, matrix in matrices}


@contextmanager
def tracing(
    criterion: Criterion, layers: Mapping[str, LayerView], sums: Mapping[str, Tensor], optimizer: Optimizer
) -> Iterator[None]:
    """Add ``criterion.trace`` of each layer to its sum, in place, at every step that the optimiser takes.

    Gradients are those that the step is taken with: summed over accumulated batches, unscaled, clipped, masked where
    masks are held already. A step that a gradient scaler leaves out adds nothing. Nothing waits for the device.

    Args:
        criterion: defines what is summed.
        layers: by name.
        sums: layer -> float32 ``[G, out, fan]``, on the weight's device.
        optimizer: that steps the layers' weights.
    """

    def before_step(*_: object) -> None:
        # A fused optimiser is called for a step that is to be left out, too, and told so.
        left_out = getattr(optimizer, "found_inf", None)
        for name in sums:
            weight = layers[name].weight
            if weight.grad is None:
                continue
            with torch.no_grad():
                term = criterion.trace(layers[name].to_matrix(weight), layers[name].to_matrix(weight.grad)).float()
            sums[name].add_(term if left_out is None else torch.where(left_out.to(term.device) > 0, 0.0, term))

    handle = optimizer.register_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()
