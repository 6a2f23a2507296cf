"""What the engine does to the optimiser of a task: its fused form on request, its state in the weights' memory order.

It must not know masks or tasks.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import ConfigError

# Exact classes, since a subclass may take its step in another way.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def fuse(optimizer: Optimizer) -> None:
    """Let an optimiser take its step in one kernel; call it before the first step.

    Steps that a gradient scaler leaves out are still left out by the scaler, which waits for the device to know. Fused
    forms could leave them out themselves, but then SGD would begin with a momentum that nobody has set.

    Raises:
        ConfigError: where the class has no fused form.
    """
    if type(optimizer) not in _FUSED:
        known = ", ".join(cls.__name__ for cls in _FUSED)
        raise ConfigError(
            f"training.fused: {type(optimizer).__name__} has no fused form, known are those of {known}; leave it out"
        )
    for group in optimizer.param_groups:
        group |= {"fused": True, "foreach": False}


def in_weights_order(optimizer: Optimizer) -> None:
    """Bring states of a weight's shape into its memory order; call it after states were loaded.

    Files hold them row by row. Steps on mixed orders are slow, and fused ones go wrong without a word.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
