"""Pick the device that this process computes on."""

import torch

from prunekit.distributed.launcher import launched_rank
from prunekit.errors import ConfigError

# What torch can train on here; its other device names print warnings or need modules of their own.
_DEVICE_TYPES = {"cpu", "cuda", "mps", "xpu"}


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" takes a GPU where there is one, of several processes each its own.

    Raises:
        ConfigError: when the name means nothing or the device is not there.
    """
    here = launched_rank()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if here is None:
            return torch.device(name)
    if here is not None and name == "cuda":
        name = f"cuda:{here.local_rank}"
    elif here is not None and name.startswith("cuda:"):
        raise ConfigError(f"device {name!r} is one GPU, and there are {here.ranks} processes; use cuda: one for each")
    kind = name.partition(":")[0]
    if kind == "meta":
        raise ConfigError("device 'meta' holds no numbers, so nothing can be trained on it; use auto, cpu or cuda")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    refusal = ConfigError(f"device {name!r} cannot be used here; expected auto or one of {', '.join(there)}")
    if kind not in _DEVICE_TYPES:
        raise refusal
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise refusal from error
    if kind == "cpu" and device.index:  # torch takes any number for the one there is
        raise refusal
    return device
