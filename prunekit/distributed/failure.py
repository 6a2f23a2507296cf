"""How failing ranks coordinate through the rendezvous store.

Collectives work only if all ranks take part, which ranks of a failing run may not. This module must not know what has
failed.
"""

import time
from contextlib import suppress

from prunekit.distributed.ranks import own_rank, rank_count
from prunekit.distributed.torch_internals import default_store, exchange_counts

_PATIENCE = 3.0  # seconds to wait for the other ranks to fail too
_BETWEEN = 0.05  # seconds between two checks of the store


def claim_report() -> bool:
    """Return True if no rank has reported the failure yet, and claim the report for this rank."""
    try:
        return int(default_store().add("reported", 1)) == 1
    except RuntimeError:  # the machine with the store cannot be reached
        return True


def all_ranks_fail_at(place: str) -> bool:
    """Return whether all ranks fail at one place, so that they can still work together; wait up to three seconds.

    Ranks must also have run the same number of collectives: otherwise one would take a leftover answer for its own.

    Args:
        place: where this rank fails.
    """
    if rank_count() == 1:
        return True
    place = f"{place} {exchange_counts()}"
    everyone = [f"{place} {rank}" for rank in range(rank_count())]
    until = time.monotonic() + _PATIENCE
    with suppress(RuntimeError):  # the machine with the store cannot be reached
        store = default_store()
        store.set(everyone[own_rank()], "")
        while time.monotonic() < until:
            if store.check(everyone):
                return True
            time.sleep(_BETWEEN)
    return False
