"""The states of torch's global generators, which dropout draws from: of all ranks, so that each can go on with its own.

It must not know files.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.ranks import gather, own_rank, rank_count


def random_states() -> dict[str, Tensor]:
    """Return the states of this process, and in a distributed run those of the other ranks, whose names say whose."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if rank_count() > 1:
        for name, state in _own_states().items():
            for rank, others in enumerate(gather(state)[1:], 1):
                states[f"rank-{rank}/{name}"] = others
    return states


def _own_states() -> dict[str, Tensor]:
    """Return the states that one of several ranks draws from: it works on one GPU at most."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_states(states: Mapping[str, Tensor]) -> bool:
    """Put back what ``random_states`` returned, each rank its own; say whether there was something for this rank.

    States of devices that are not here are left out.
    """
    if own_rank() > 0:
        prefix = f"rank-{own_rank()}/"
        states = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    if "cpu" not in states:
        return False
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{index}"], index)
    return True
