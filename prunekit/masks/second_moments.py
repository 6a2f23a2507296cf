"""Second moments of dropped weights: kept from being exactly 0, where the root of 0 makes an optimiser slow.

On a CPU the vector library that torch takes square roots with needs six times as long for 0 as for other numbers, and
under a mask most second moments are 0: a step of AdamW takes 40 % longer. What they are plays no part, since gradient
and first moment of a dropped weight are 0. This module knows optimisers of PyTorch; it must not know models.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.distributed.dtensor import local_shard

# Exact classes -> the state whose root they take. Those that are not here take no root of a plain second moment.
_STATES: dict[type[Optimizer], str] = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.NAdam: "exp_avg_sq",
    torch.optim.RAdam: "exp_avg_sq",
    torch.optim.RMSprop: "square_avg",
    torch.optim.Adagrad: "sum",
}
# Below this a number that goes on to shrink would become subnormal, which is slow as well.
_LEAST = 1e-30
_NEVER = 2**62  # steps


def lift(optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor) -> int:
    """Set the second moments of dropped entries to 1, which changes no weight to the last bit.

    Args:
        optimizer: after a step.
        parameter: one that it steps.
        mask: True = keep; what belongs to the part of the parameter on this process.

    Returns:
        After how many steps to do it again, since second moments decay; 0 where there is no state yet.
    """
    moments = second_moments(optimizer, parameter)
    if moments is None:
        return 0 if type(optimizer) in _STATES and not optimizer.state.get(parameter) else _NEVER
    local_shard(moments).masked_fill_(mask.logical_not(), 1)
    decay = min(_decay(group) for group in optimizer.param_groups)
    return _NEVER if decay >= 1 else max(1, int(math.log(_LEAST) / math.log(max(decay, _LEAST))))


def second_moments(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """Return the second moments that ``lift`` works on, or ``None`` where it has nothing to do with them."""
    name = _STATES.get(type(optimizer), "")
    moments = optimizer.state.get(parameter, {}).get(name)
    if not isinstance(moments, Tensor) or moments.shape != parameter.shape:
        return None
    part = local_shard(moments)
    plain = type(part) is Tensor and part.device.type == "cpu"
    return moments if plain and part.dtype in {torch.float32, torch.float64} else None


def _decay(group: dict[str, object]) -> float:
    """Return the factor on old second moments at a step."""
    betas = group.get("betas")
    if isinstance(betas, tuple | list):
        return float(betas[1])
    return float(group.get("alpha", 1.0))  # type: ignore[arg-type] # RMSprop's; Adagrad only adds
