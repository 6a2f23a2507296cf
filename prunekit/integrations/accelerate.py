"""Masks held on what Accelerate has prepared.

It must know no more of Accelerate than its kinds of distribution; nor criteria or the engine.
"""

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim import Optimizer

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def hold(accelerator: Accelerator, masks: Masks, model: nn.Module, optimizer: Optimizer) -> Held[Masks]:
    """Return masks that a loop of Accelerate trains under, a context manager like ``Masks.hold``.

    After every step, and so in every ``accelerator.save_state``, the dropped weights are exactly 0.0; after
    ``accelerator.load_state`` they are zeroed once more.

    Args:
        accelerator: what prepared model and optimiser.
        masks: what to hold; their names are those of the model, prepared or not.
        model: what ``accelerator.prepare`` returned.
        optimizer: the same.

    Raises:
        ConfigError: when parameters are sharded (FSDP, DeepSpeed, Megatron), which masks do not follow.
        MaskError: when the masks do not fit the model.
    """
    if accelerator.distributed_type in _SHARDED:
        kind = accelerator.distributed_type.value
        raise ConfigError(f"masks cannot be held on sharded parameters; configure Accelerate without {kind}")
    return masks.hold(model, optimizer)
