"""Seed, save and restore the global random generators of a process (torch, NumPy, Python) together.

Each rank has its own. Data and selection have separate generators; the global ones serve dropout and the losses of
tasks. This module must not know when they are used.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.distributed.ranks import gather, own_rank, rank_count

_NUMPY_SEEDS = 2**32  # the limit of NumPy's legacy generator


def seed_all(seed: int) -> None:
    """Seed all global generators, torch's on every device included."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - tasks draw from the global one, if from any


def torch_state() -> dict[str, Tensor]:
    """Return the states of torch's generators, without synchronising any device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def random_state() -> dict[str, Tensor]:
    """Return the states of all global generators, by name."""
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
    """Restore the states that ``random_state`` returned; states of devices that this machine lacks are ignored.

    Raises:
        KeyError: a state is missing.
        RuntimeError: a state is invalid.
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
    """Return the states of this process, and those of other ranks under the prefixes ``rank-1/``, ``rank-2/``, ...

    Args:
        own: states that ``random_state`` returned in this process; ``None``: the current ones.
    """
    states = dict(random_state() if own is None else own)
    if rank_count() > 1:
        for name, state in _of_one_device(states).items():
            for rank, others in enumerate(gather(state)[1:], 1):
                states[f"rank-{rank}/{name}"] = others
    return states


def _of_one_device(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the states that one of several ranks uses: it has at most one GPU."""
    own = {name: state for name, state in states.items() if not name.startswith("cuda:")}
    return own | ({"cuda": states[f"cuda:{torch.cuda.current_device()}"]} if torch.cuda.is_available() else {})


def restore_random_states(states: Mapping[str, Tensor]) -> bool:
    """Restore this rank's states from those that ``random_states`` returned, and return whether there were any.

    States of devices that this machine lacks are ignored.
    """
    if own_rank() > 0:
        prefix = f"rank-{own_rank()}/"
        states = {name.removeprefix(prefix): state for name, state in states.items() if name.startswith(prefix)}
    if "cpu" not in states:
        return False
    set_random_state(states)
    return True


def _optional(value: float | None) -> Tensor:
    """Encode the second of two normal draws, which NumPy and Python keep for the next call, or its absence."""
    return torch.tensor([value is not None, value or 0.0], dtype=torch.float64)


def _given(value: Tensor) -> float | None:
    there, number = value.tolist()
    return number if there else None
