"""Makes a run ready whose model is shared out over several processes, and refuses what does not go with that.

It must not know stages, masks or checkpoints.
"""

import torch

from prunekit.errors import ConfigError
from prunekit.fully_sharded import shard
from prunekit.hardware import Hardware
from prunekit.preparation import Prepared
from prunekit.process_group import is_loss
from prunekit.reading import Parts, check_share
from prunekit.seeds import Seeds
from prunekit.shared_norms import share_norms


def share_out(prepared: Prepared, hardware: Hardware, seeds: Seeds) -> None:
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
    share_norms(model)
    part = Parts(task, task.batches("train", 0, seeds))[0]
    check_share(part)
    try:
        shard(model, task.shards(model), hardware.device)
        # What is called first counts as the outermost module, so it has to be the model, before parts of it are called.
        with torch.no_grad(), hardware.autocast():
            task.loss(model.eval(), hardware.move(part.batch))
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        if is_loss(error) or isinstance(error, torch.OutOfMemoryError):  # not the model's fault
            raise
        raise ConfigError(
            f"the model cannot be shared out with training.parallel='fsdp' ({error}); take 'ddp', or let the task's "
            "loss call the model as it is given, and its 'shards' name modules that are called"
        ) from error
