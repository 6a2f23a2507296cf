"""Data-parallel training with PyTorch's ``DistributedDataParallel``, and when it averages gradients.

It must not know tasks, masks or stages.
"""

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from prunekit.distributed.batch_norm import synchronize_norms
from prunekit.distributed.fsdp import is_fully_sharded
from prunekit.distributed.ranks import rank_count
from prunekit.distributed.torch_internals import uncompiled


def parallel(model: nn.Module) -> nn.Module:
    """Return the module to call in training: with several ranks, one that averages gradients over them.

    It shares its parameters with ``model``, which must be on its device already; batch normalisation in ``model`` is
    replaced by one over all ranks. A fully sharded model is returned as it is, since it averages gradients itself.
    """
    if rank_count() == 1 or is_fully_sharded(model):
        return model
    synchronize_norms(model)
    # A task's loss may ignore some parameters, and other ones in the next batch.
    return DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)


def averaging(model: nn.Module, *, on: bool) -> AbstractContextManager[None]:
    """Return a context for one forward and backward pass that averages gradients, or only accumulates them.

    Args:
        model: the module that ``parallel`` returned, compiled or not.
        on: True for the last pass before an optimiser step: gradients are averaged over all ranks.
    """
    inner = uncompiled(model)
    if on or not isinstance(inner, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = inner.no_sync()
    return context
