"""The global random generators of a process: torch's, NumPy's and Python's own, seeded, saved and put back together.

Each of several ranks has its own. Data and selection draw from generators of their own; what is left for these is
dropout and whatever a task's loss draws. This module must not know when that is.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.distributed.ranks import gather, own_rank, rank_count

_NUMPY_SEEDS = 2**32  # NumPy's old generator takes no more


def seed_all(seed: int) -> None:
    """Seed all of them: torch's on every device too."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - tasks draw from the global one, if from any


def torch_state() -> dict[str, Tensor]:
    """Return the states of torch's; no device is waited for."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def random_state() -> dict[str, Tensor]:
    """Return the states of all of them."""
    states = torch_state()
    version, words, gauss = random.getstate()
    states["python"] = torch.tensor([version, *words], dtype=torch.int64)
    states["python gauss"] = _optional(gauss)
    twister: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    _, key, position, has_gauss, cached = twister
    states["numpy"] = torch.tensor([*key.tolist(), position], dtype=torch.int64)
    states["numpy gauss"] = _optional(cached if has_gauss else None)
    return states


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Put back what ``random_state`` returned; states of devices that are not here are left out.

    Raises:
        KeyError: one is missing.
        RuntimeError: one is none.
        TypeError: likewise.
        ValueError: likewise.
    """
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda:{index}"], index)
    version, *words = states["python"].tolist()
    random.setstate((version, tuple(words), _given(states["python gauss"])))
    *key, position = states["numpy"].tolist()
    cached = _given(states["numpy gauss"])
    twister = ("MT19937", np.array(key, dtype=np.uint32), position, int(cached is not None), cached or 0.0)
    np.random.set_state(twister)  # noqa: NPY002


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


def _optional(value: float | None) -> Tensor:
    """Both keep the second of two normal draws for later, or have none."""
    return torch.tensor([value is not None, value or 0.0], dtype=torch.float64)


def _given(value: Tensor) -> float | None:
    there, number = value.tolist()
    return number if there else None
