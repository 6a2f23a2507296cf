"""The states of the global random generators of all ranks, so that each can go on with its own.

It must not know files.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.random_state import random_state, set_random_state
from prunekit.ranks import gather, own_rank, rank_count


def random_states(own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the states of this process, and in a distributed run those of the other ranks, whose names say whose.

    Args:
        own: what ``random_state`` returned in this process; ``None``: as they are now.
    """
    states = dict(random_state() if own is None else own)
    if rank_count() > 1:
        for name, state in _of_one_device(states).items():
            for rank, others in enumerate(gather(state)[1:], 1):
                states[f"rank-{rank}/{name}"] = others
    return states


def _of_one_device(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the states that one of several ranks draws from: it works on one GPU at most."""
    own = {name: state for name, state in states.items() if not name.startswith("cuda:")}
    return own | ({"cuda": states[f"cuda:{torch.cuda.current_device()}"]} if torch.cuda.is_available() else {})


def restore_random_states(states: Mapping[str, Tensor]) -> bool:
    """Put back what ``random_states`` returned, each rank its own; say whether there was something for this rank.

    States of devices that are not here are left out.
    """
    if own_rank() > 0:
        prefix = f"rank-{own_rank()}/"
        states = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    if "cpu" not in states:
        return False
    set_random_state(states)
    return True
