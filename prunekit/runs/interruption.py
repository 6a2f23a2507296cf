"""Requests to stop: SIGTERM and Ctrl-C set a flag that is checked between two steps.

Work whose intermediate results are never saved, such as statistics and evaluation, ends at once on a request; a second
Ctrl-C ends anything at once. This module must not know what is saved then, or by whom.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import attrs
from torch import nn

from prunekit.distributed.dtensor import reshard
from prunekit.distributed.ranks import gather_numbers, rank_count

# A launcher forwards a signal that the terminal, or timeout(1), has already sent to the whole process group.
_ECHO = 0.5  # seconds within which a second signal is such an echo
_CHANGED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGCHLD") if hasattr(signal, name)]


@attrs.define
class Interruption:
    """Whether the run was requested to stop; only ``listening`` receives requests.

    Attributes:
        request: the first signal, or ``None``.
        immediate: whether a second Ctrl-C came; then nothing is saved any more.
    """

    request: signal.Signals | None = attrs.field(default=None, init=False)
    immediate: bool = attrs.field(default=False, init=False)
    _interruptible: bool = attrs.field(default=False, init=False)
    _process: int = attrs.field(factory=os.getpid, init=False)
    _since: float = attrs.field(default=0.0, init=False)

    @contextmanager
    def listening(self, report: Callable[[signal.Signals], object]) -> Iterator[None]:
        """Treat SIGTERM and Ctrl-C as requests within the context; does nothing outside the main thread.

        Args:
            report: called with the first request, between any two instructions of the program.
        """
        if current_thread() is not main_thread():
            yield
            return

        def handle(number: int, _: FrameType | None) -> None:
            self._receive(signal.Signals(number), report)

        before = {number: signal.getsignal(number) for number in _CHANGED}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a request end the context at once.

        Raises:
            KeyboardInterrupt: when a request comes, or came before.
        """
        self._interruptible = True
        try:
            self.raise_if_requested()
            yield
        finally:
            self._interruptible = False

    def raise_if_requested(self) -> None:
        """Raise ``KeyboardInterrupt`` if a stop was requested."""
        if self.request is not None:
            raise KeyboardInterrupt

    def adopt_request(self) -> None:
        """Take over the request that another rank received."""
        if self.request is None:
            self.request = signal.SIGTERM

    def _receive(self, number: signal.Signals, report: Callable[[signal.Signals], Any]) -> None:
        if os.getpid() != self._process:
            _receive_in_child(number)
        elif self.request is None:
            self.request, self._since = number, time.monotonic()
            if hasattr(signal, "SIGCHLD"):
                # A signal to all processes ends data workers too; torch would raise that in the middle of the step.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            report(number)
            if self._interruptible:
                raise KeyboardInterrupt
        elif number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
            self.immediate = True
            raise KeyboardInterrupt


def _receive_in_child(number: signal.Signals) -> None:
    """Let a forked child die of SIGTERM, as it would by default; on Ctrl-C, its parent ends it."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def raise_if_any_rank_requested(interruption: Interruption) -> None:
    """Raise ``KeyboardInterrupt`` on all ranks if any rank was requested to stop; all ranks must call it."""
    if any(requested for (requested,) in gather_numbers([interruption.request is not None])):
        interruption.adopt_request()
        interruption.raise_if_requested()  # inside: the other ranks do not know of a request that came in between


def interruptible_alone(interruption: Interruption) -> AbstractContextManager[None]:
    """Return a context that a request ends at once in a single process; of several ranks, one must not leave alone."""
    return interruption.interruptible() if rank_count() == 1 else nullcontext()


@contextmanager
def interruptible_between_calls(interruption: Interruption, model: nn.Module, called: nn.Module) -> Iterator[None]:
    """Let a request to any rank end the context on all ranks, before the next call of a network.

    Args:
        interruption: of this rank.
        model: the sharded model.
        called: the model, or the part of it that is called.
    """
    # The first hook of all: FSDP must not have gathered anything for a call that does not happen.
    handle = called.register_forward_pre_hook(lambda *_: raise_if_any_rank_requested(interruption), prepend=True)
    try:
        yield
    finally:
        handle.remove()
        reshard(model)
