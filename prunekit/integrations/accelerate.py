"""Hold masks on a model and an optimiser prepared by Accelerate.

It must not know criteria or the engine, nor anything of Accelerate but its kinds of distribution.
"""

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.optim import Optimizer

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks

_SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def hold(accelerator: Accelerator, masks: Masks, model: nn.Module, optimizer: Optimizer) -> Held[Masks]:
    """Hold masks in a training loop with Accelerate: a context manager like ``Masks.hold``.

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        with hold(accelerator, masks, model, optimizer):
            ...  # train as before

    Dropped weights are exactly 0.0 after every step, and so in every ``accelerator.save_state``; after
    ``accelerator.load_state`` they are zeroed again.

    Args:
        accelerator: the accelerator that prepared model and optimiser.
        masks: the masks to hold, under the parameter names of the model, prepared or not.
        model: the model that ``accelerator.prepare`` returned.
        optimizer: the optimiser that ``accelerator.prepare`` returned.

    Raises:
        ConfigError: parameters are sharded (FSDP, DeepSpeed, Megatron), which is not supported.
        MaskError: the masks do not fit the model.
    """
    if accelerator.distributed_type in _SHARDED:
        kind = accelerator.distributed_type.value
        raise ConfigError(f"masks cannot be held on parameters sharded by {kind}; configure Accelerate without it")
    return masks.hold(model, optimizer)
