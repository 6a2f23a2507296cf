"""Keep second moments of dropped weights away from exact zero, because sqrt(0) is slow on CPUs.

The vector library that computes torch's square roots on CPUs takes six times as long for 0 as for other numbers, and
under a mask most second moments are 0: a step of AdamW takes 40 % longer. Their values do not matter, because gradient
and first moment of a dropped weight are 0. This module knows optimisers of PyTorch; it must not know models.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.distributed.dtensor import local_shard

# Exact class -> the state whose square root it takes. Other classes take no square root of a plain second moment.
_STATES: dict[type[Optimizer], str] = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.NAdam: "exp_avg_sq",
    torch.optim.RAdam: "exp_avg_sq",
    torch.optim.RMSprop: "square_avg",
    torch.optim.Adagrad: "sum",
}
# Below this, a number that decays further would become subnormal, which is slow as well.
_LEAST = 1e-30
_NEVER = 2**62  # steps


def lift(optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor) -> int:
    """Set the second moments of dropped weights to 1, which does not change a bit of any weight.

    Args:
        optimizer: the optimiser, after a step.
        parameter: one of its parameters.
        mask: bool of the shape of the parameter's local shard, True = keep.

    Returns:
        The number of steps after which to call this again, since second moments decay; 0 if there is no state yet.
    """
    moments = second_moments(optimizer, parameter)
    if moments is None:
        return 0 if type(optimizer) in _STATES and not optimizer.state.get(parameter) else _NEVER
    local_shard(moments).masked_fill_(mask.logical_not(), 1)
    decay = min(_decay(group) for group in optimizer.param_groups)
    return _NEVER if decay >= 1 else max(1, int(math.log(_LEAST) / math.log(max(decay, _LEAST))))


def second_moments(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """Return the second moments that ``lift`` sets, or ``None`` if there are none for it to set."""
    name = _STATES.get(type(optimizer), "")
    moments = optimizer.state.get(parameter, {}).get(name)
    if not isinstance(moments, Tensor) or moments.shape != parameter.shape:
        return None
    shard = local_shard(moments)
    plain = type(shard) is Tensor and shard.device.type == "cpu"
    return moments if plain and shard.dtype in {torch.float32, torch.float64} else None


def _decay(group: dict[str, object]) -> float:
    """Return the factor by which a step multiplies old second moments."""
    betas = group.get("betas")
    if isinstance(betas, tuple | list):
        return float(betas[1])
    return float(group.get("alpha", 1.0))  # type: ignore[arg-type] # RMSprop's; Adagrad only adds
