"""What ranks that fail let each other know, through the store where they met.

Tensors are exchanged only where all ranks do the same, which those of a run that fails may not. This module must not
know what has failed.
"""

import time
from contextlib import suppress
from typing import Any

from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store

from prunekit.distributed.ranks import own_rank, rank_count

_PATIENCE = 3.0  # seconds in which ranks that fail alike have failed
_BETWEEN = 0.05  # seconds between two looks


def claim_report() -> bool:
    """Say whether no other rank has told the user why the run ends; from now on, this one has."""
    try:
        return _get_default_store().add("spoken", 1) == 1
    except RuntimeError:  # it was on a machine that is gone
        return True


def all_ranks_fail_at(place: str) -> bool:
    """Say whether all ranks fail at one place, so that they can still do something together; waits some seconds.

    Args:
        place: where this one fails; what ranks have exchanged so far is added.
    """
    if rank_count() == 1:
        return True
    place = f"{place} {_exchanges()}"
    everyone = [f"{place} {rank}" for rank in range(rank_count())]
    until = time.monotonic() + _PATIENCE
    with suppress(RuntimeError):  # the store was on a machine that is gone
        store = _get_default_store()
        store.set(everyone[own_rank()], "")
        while time.monotonic() < until:
            if store.check(everyone):
                return True
            time.sleep(_BETWEEN)
    return False


def _exchanges() -> dict[str, int]:
    """Return how often this rank has exchanged tensors of each kind of device.

    One that has less often than others would take what is left of theirs for the answer to what it sends next.
    """
    group: Any = distributed.group.WORLD
    devices = sorted(group._device_types, key=str)  # noqa: SLF001 - nothing public counts exchanges
    return {str(device): group._get_backend(device)._get_sequence_number_for_group() for device in devices}  # noqa: SLF001
