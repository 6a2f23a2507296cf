"""Followers of PyTorch's own modules: batch normalisation. This module must not know where channels flow."""

from torch import Tensor, nn

from prunekit.distributed.torch_internals import BatchNorm
from prunekit.layers.follower import ChannelFollower


class BatchNormFollower(ChannelFollower):
    """``nn.BatchNorm1d/2d/3d`` and ``nn.SyncBatchNorm`` with running statistics, which evaluation mode uses."""

    per_channel = ("weight", "bias", "running_mean", "running_var")
    module: BatchNorm

    @property
    def channels(self) -> int:
        return len(self.values("running_mean"))

    def constants(self, inputs: Tensor) -> Tensor:
        scaled = (inputs - self.values("running_mean")) / (self.values("running_var") + self.module.eps).sqrt()
        if self.module.weight is not None:
            scaled = scaled * self.values("weight")
        return scaled if self.module.bias is None else scaled + self.values("bias")

    def resize(self, kept: Tensor) -> None:
        super().resize(kept)
        self.module.num_features = len(kept)


def core_follower(module: nn.Module) -> ChannelFollower | None:
    """Return the follower of a module of PyTorch; ``None`` for any other module."""
    if not isinstance(module, BatchNorm) or module.running_mean is None:
        return None
    # A subclass may compute something else.
    return BatchNormFollower(module) if type(module).forward in _FORWARDS else None


_FORWARDS = {BatchNorm.forward, nn.SyncBatchNorm.forward}
