"""A third-party normalisation, and a follower so that prunekit can remove its channels."""

import torch
from torch import Tensor, nn

from prunekit import ChannelFollower, hookimpl


class ActivationNorm(nn.Module):
    """Scale and shift each channel of images by learned numbers (Kingma and Dhariwal, 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale[:, None, None] + self.shift[:, None, None]


class _ActivationNormFollower(ChannelFollower):
    per_channel = ("scale", "shift")

    def constants(self, inputs: Tensor) -> Tensor:
        return inputs * self.values("scale") + self.values("shift")


@hookimpl
def prunekit_layer_views(module: nn.Module) -> ChannelFollower | None:
    """Return the follower of the normalisation."""
    return _ActivationNormFollower(module) if isinstance(module, ActivationNorm) else None
