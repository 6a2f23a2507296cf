"""Makes a run ready whose model is shared out over several processes, and refuses what does not go with that.

It must not know stages, masks or checkpoints.
"""

import torch

from prunekit.contracts.seeds import Seeds
from prunekit.distributed.batch_norm import synchronize_norms
from prunekit.distributed.fsdp import shard
from prunekit.distributed.process_group import is_lost_contact
from prunekit.errors import ConfigError
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.training.batches import Parts, check_share
from prunekit.runs.training.hardware import Hardware


def shard_model(prepared: PreparedRun, hardware: Hardware, seeds: Seeds) -> None:
    """Spread the model over all processes, on the device, and run it once.

    Raises:
        ConfigError: a criterion that looks at the network as a whole; a model that does not run like that.
        DataError: a batch that is too small to be shared out.
    """
    criterion = prepared.make_criterion()
    if "network" in criterion.needs:
        raise ConfigError(
            f"criterion {criterion.name!r} looks at the whole network at once, which no process has with "
            "training.parallel='fsdp'; take 'ddp', or another criterion"
        )
    model, task = prepared.model, prepared.task
    synchronize_norms(model)
    part = Parts(task, task.batches("train", 0, seeds))[0]
    check_share(part)
    try:
        shard(model, task.shards(model), hardware.device)
        # What is called first counts as the outermost module, so it has to be the model, before parts of it are called.
        with torch.no_grad(), hardware.autocast():
            task.loss(model.eval(), hardware.move(part.batch))
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        if is_lost_contact(error) or isinstance(error, torch.OutOfMemoryError):  # not the model's fault
            raise
        raise ConfigError(
            f"the model cannot be shared out with training.parallel='fsdp' ({error}); take 'ddp', or let the task's "
            "loss call the model as it is given, and its 'shards' name modules that are called"
        ) from error
