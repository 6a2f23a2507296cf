"""Stopping together: what the ranks of a run do where any of them was asked to stop.

All ranks must come to the same places. This module must not know what is saved then.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn

from prunekit.interruption import Interruption
from prunekit.ranks import gather_numbers, rank_count
from prunekit.sharding import reshard


def obey(stop: Interruption) -> None:
    """Raise ``KeyboardInterrupt`` where the user has asked to stop, of several ranks any; all must come here."""
    if any(asked for (asked,) in gather_numbers([stop.request is not None])):
        stop.join()
        stop.obey()  # not for a request that has come to this rank since: the others have not heard of it


def abandonable(stop: Interruption) -> AbstractContextManager[None]:
    """Return the context of work that a request to stop ends at once; ranks would lose each other in it."""
    return stop.abandonable() if rank_count() == 1 else nullcontext()


@contextmanager
def ended_between_batches(stop: Interruption, model: nn.Module, called: nn.Module) -> Iterator[None]:
    """Let a request to stop end what all ranks do with a network meanwhile, before one of its next calls.

    Args:
        stop: of this rank.
        model: what is spread over the ranks.
        called: it, or the part of it that is called.
    """
    # First of all hooks: what FSDP gathers for a call is not to be there when there is none.
    handle = called.register_forward_pre_hook(lambda *_: obey(stop), prepend=True)
    try:
        yield
    finally:
        handle.remove()
        reshard(model)
