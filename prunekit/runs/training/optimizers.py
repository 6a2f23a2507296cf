"""Adapt an optimiser to a run: fused steps, and state tensors in the memory order of the weights.

It must not know masks or tasks.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import ConfigError

# Exact classes: a subclass may take its step differently.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def fuse(optimizer: Optimizer) -> None:
    """Let an optimiser take its step in one kernel; call this before the first step.

    Steps that a gradient scaler skips are skipped by the scaler, which waits for the device. Fused optimisers could
    skip them without waiting, but SGD would then start from an uninitialised momentum.

    Raises:
        ConfigError: when the class has no fused form.
    """
    if type(optimizer) not in _FUSED:
        known = ", ".join(cls.__name__ for cls in _FUSED)
        raise ConfigError(
            f"training.fused is set, but {type(optimizer).__name__} has no fused form; leave it out, or use {known}"
        )
    for group in optimizer.param_groups:
        group |= {"fused": True, "foreach": False}


def match_memory_order(optimizer: Optimizer) -> None:
    """Convert states of a weight's shape to its memory order, in place; call this after loading states.

    Files store tensors row by row. Steps on mixed memory orders are slow, and fused steps give wrong results without
    an error.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
