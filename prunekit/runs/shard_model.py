"""Shard a run's model over all ranks (FSDP2), and refuse criteria and models that do not support it.

It must not know stages, masks or checkpoints.
"""

import torch

from prunekit.contracts.seeds import Seeds
from prunekit.distributed.batch_norm import synchronize_norms
from prunekit.distributed.fsdp import shard
from prunekit.distributed.process_group import is_lost_contact
from prunekit.errors import ConfigError
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.training.batches import RankBatches, check_share
from prunekit.runs.training.hardware import Hardware


def shard_model(prepared: PreparedRun, hardware: Hardware, seeds: Seeds) -> None:
    """Shard the model across all ranks and run it once to check that it works; all ranks must call this function.

    Raises:
        ConfigError: a criterion that needs the whole network, or a model that does not run when it is sharded.
        DataError: a batch that is too small for the number of ranks.
    """
    criterion = prepared.make_criterion()
    if "network" in criterion.needs:
        raise ConfigError(
            f"criterion {criterion.name!r} needs the whole network at once, which no rank holds with "
            "training.parallel='fsdp'; use 'ddp' or another criterion"
        )
    model, task = prepared.model, prepared.task
    synchronize_norms(model)
    own = RankBatches(task, task.batches("train", 0, seeds))[0]
    check_share(own)
    try:
        shard(model, task.shards(model), hardware.device)
        # FSDP takes the first module that is called as the root, so the model is called before parts of it are.
        with torch.no_grad(), hardware.autocast():
            task.loss(model.eval(), hardware.move(own.batch))
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        if is_lost_contact(error) or isinstance(error, torch.OutOfMemoryError):  # not the model's fault
            raise
        raise ConfigError(
            f"the model cannot be sharded with training.parallel='fsdp' ({error}); use 'ddp', or let the task's "
            "loss call the model that it is given, and its 'shards' name modules that are called"
        ) from error
