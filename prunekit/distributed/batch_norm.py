"""Batch normalisation over the samples of all ranks, so that several processes train the same model as one would.

It must not know layers, masks or runs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.distributed.ranks import own_rank, rank_count, sum_with_gradients
from prunekit.distributed.torch_internals import BatchNorm


def synchronize_norms(model: nn.Module) -> None:
    """Replace every batch normalisation in a model, in place, by one over the samples of all ranks.

    Names and parameters stay the same. On a GPU the replacement is torch's ``SyncBatchNorm``, which needs one. A single
    process is left as it is.
    """
    if rank_count() == 1:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, _shared(child))


def _shared(norm: BatchNorm) -> nn.Module:
    on_gpu = any(tensor.is_cuda for tensor in norm.state_dict().values())
    made = (nn.SyncBatchNorm if on_gpu else CpuSyncBatchNorm)(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name, parameter in norm.named_parameters(recurse=False):
        made.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        made.register_buffer(name, buffer)
    return made.train(norm.training)


class CpuSyncBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the means and variances, and their gradients, of the samples of all ranks."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised ``[samples, features, ...]``, in the same dtype."""
        if not self.training:
            # BatchNorm1d.forward would refuse four or five dimensions.
            mean, variance = self.running_mean, self.running_var
            own = mean is None  # without running statistics, evaluation normalises by those of its samples
            return F.batch_norm(values, mean, variance, self.weight, self.bias, own, 0.0, self.eps)
        # At least single precision, as in torch's own sums.
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, [0, *range(2, exact.dim())], correction=0)
        count = torch.full_like(mean, exact.numel() / len(mean))
        everyone = exact.new_zeros(rank_count(), 3, len(mean))
        everyone[own_rank()] = torch.stack([count, mean, variance])
        counts, means, variances = sum_with_gradients(everyone).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        self._track(mean.detach(), (variance * total / (total - 1)).detach())
        shape = [1, -1] + [1] * (exact.dim() - 2)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        result = (exact - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(values.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean += (mean - self.running_mean) * factor
        self.running_var += (variance - self.running_var) * factor
