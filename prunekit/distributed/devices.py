"""Pick the device that this process computes on."""

import torch

from prunekit.distributed.launcher import launched_rank
from prunekit.errors import ConfigError

# Devices that torch can train on; its other device names print warnings or need separate packages.
_DEVICE_TYPES = {"cpu", "cuda", "mps", "xpu"}


def pick_device(name: str) -> torch.device:
    """Return the device with a name; "auto" is a GPU if there is one, and each of several processes gets its own.

    >>> pick_device("cpu")
    device(type='cpu')

    Args:
        name: "auto", "cpu", "cuda", "cuda:1" or another device type of torch.

    Raises:
        ConfigError: the name is unknown, or the device is not available.
    """
    here = launched_rank()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if here is None:
            return torch.device(name)
    if here is not None and name == "cuda":
        name = f"cuda:{here.local_rank}"
    elif here is not None and name.startswith("cuda:"):
        raise ConfigError(
            f"device {name!r} is a single GPU, but there are {here.ranks} processes; use cuda, which gives each its own"
        )
    kind = name.partition(":")[0]
    if kind == "meta":
        raise ConfigError("device 'meta' has no memory for values and cannot train; use auto, cpu or cuda")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    refusal = ConfigError(f"device {name!r} is not available here; expected auto or one of {', '.join(there)}")
    if kind not in _DEVICE_TYPES:
        raise refusal
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise refusal from error
    if kind == "cpu" and device.index:  # torch accepts any index for the only CPU
        raise refusal
    return device
