"""Batch normalisation: which modules are that, what they make of constants, and how they are resized.

This module must not know networks.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from prunekit.distributed.torch_internals import BatchNorm


def is_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Say whether a module scales each channel, in evaluation mode, by what it has stored."""
    known = type(module).forward in {BatchNorm.forward, nn.SyncBatchNorm.forward}
    return isinstance(module, BatchNorm) and known and module.running_mean is not None


def norm_constants(norm: BatchNorm, inputs: Tensor) -> Tensor:
    """Return what batch normalisation in evaluation mode makes of constants: float64 ``[channels]``, NaN stays."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scaled = (inputs - norm.running_mean.double().cpu()) / (norm.running_var.double().cpu() + norm.eps).sqrt()
    if norm.weight is None:
        return scaled
    return scaled * norm.weight.detach().double().cpu() + norm.bias.detach().double().cpu()


def resize_norm(norm: BatchNorm, channels: Tensor) -> None:
    """Leave batch normalisation only these channels, in place.

    Args:
        norm: the module.
        channels: numbers of those that stay; int64.
    """
    norm.num_features = len(channels)
    for name in ("running_mean", "running_var"):
        buffer = norm.get_buffer(name)
        norm.register_buffer(name, torch.index_select(buffer, 0, channels.to(buffer.device)))
    for name, parameter in list(norm.named_parameters(recurse=False)):
        values = parameter.detach()[channels.to(parameter.device)]
        norm.register_parameter(name, nn.Parameter(values, parameter.requires_grad))
