"""Read the rank that a launcher such as torchrun sets in the environment of each process it starts.

The command line reads it before torch is loaded, so this module must import neither torch nor attrs.
"""

import os
from typing import NamedTuple

from prunekit.errors import ConfigError


class LaunchedRank(NamedTuple):
    """One of several processes.

    Attributes:
        rank: index of the process, from 0.
        ranks: number of processes.
        local_rank: index among the processes on this machine, which is the index of its GPU.
    """

    rank: int
    ranks: int
    local_rank: int


def launched_rank() -> LaunchedRank | None:
    """Return which of several processes this is, or ``None`` if it is the only one.

    Raises:
        ConfigError: the launcher's variables in the environment contradict each other or are not numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    here = LaunchedRank(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK"))
    if here.rank >= here.ranks:
        raise ConfigError(
            f"RANK is {here.rank}, expected less than WORLD_SIZE = {here.ranks}; start the run with torchrun"
        )
    return here if here.ranks > 1 else None


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"environment variable {name} is {text!r}, expected a number; start the run with torchrun")
    return int(text)
