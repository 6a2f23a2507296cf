"""What a launcher such as torchrun says in the environment of each process that it starts: which rank of how many.

The command line asks it before torch is there, so this module must import neither torch nor attrs.
"""

import os
from typing import NamedTuple

from prunekit.errors import ConfigError


class LaunchedRank(NamedTuple):
    """One process of several.

    Attributes:
        rank: its number, from 0.
        ranks: how many there are.
        local_rank: its number among those on this machine, which is that of its GPU.
    """

    rank: int
    ranks: int
    local_rank: int


def launched_rank() -> LaunchedRank | None:
    """Return which of several processes this is; ``None`` where it is the only one.

    Raises:
        ConfigError: when the environment says something that cannot be.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    here = LaunchedRank(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK"))
    if here.rank >= here.ranks:
        raise ConfigError(f"RANK is {here.rank}, but WORLD_SIZE only {here.ranks}; start the run with torchrun")
    return here if here.ranks > 1 else None


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, expected a number; start the run with torchrun")
    return int(text)
