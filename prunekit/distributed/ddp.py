"""Training one model in several processes: PyTorch's ``DistributedDataParallel``, and when it averages gradients.

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
    """Return what to call in training: the model, which averages its gradients over all ranks where there are several.

    Its parameters stay those of ``model``, which must be on its device; batch normalisation becomes that of all ranks.
    A model that is fully sharded averages them itself.
    """
    if rank_count() == 1 or is_fully_sharded(model):
        return model
    synchronize_norms(model)
    # Which parameters a task's loss leaves out is not for us to know, and may change from batch to batch.
    return DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)


def averaging(model: nn.Module, *, on: bool) -> AbstractContextManager[None]:
    """Return the context of one forward and backward pass; ``on``: gradients are averaged at its end, else only added.

    Args:
        model: what ``parallel`` returned, compiled or not.
        on: whether this is the last pass before a step.
    """
    inner = uncompiled(model)
    if on or not isinstance(inner, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = inner.no_sync()
    return context
