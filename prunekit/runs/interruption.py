"""Being asked to stop: SIGTERM and Ctrl-C set a flag that whoever trains looks at between two steps.

Where nothing of the work under way is kept anyway, in statistics and evaluation, the request ends it at once; a second
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

# Launchers forward what the terminal, or timeout(1), has sent to the whole process group already.
_ECHO = 0.5  # seconds
_CHANGED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGCHLD") if hasattr(signal, name)]


@attrs.define
class Interruption:
    """Whether the run was asked to stop; without ``listening``, nobody asks.

    Attributes:
        request: the first signal, or ``None``.
        hurried: a second Ctrl-C came; then nothing is to be saved any more.
    """

    request: signal.Signals | None = attrs.field(default=None, init=False)
    hurried: bool = attrs.field(default=False, init=False)
    _abandonable: bool = attrs.field(default=False, init=False)
    _process: int = attrs.field(factory=os.getpid, init=False)
    _since: float = attrs.field(default=0.0, init=False)

    @contextmanager
    def listening(self, tell: Callable[[signal.Signals], object]) -> Iterator[None]:
        """Take SIGTERM and Ctrl-C as requests meanwhile; only the main thread can.

        Args:
            tell: called with the first request, between any two instructions of the program.
        """
        if current_thread() is not main_thread():
            yield
            return

        def handle(number: int, _: FrameType | None) -> None:
            self._take(signal.Signals(number), tell)

        before = {number: signal.getsignal(number) for number in _CHANGED}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Let a request end what is done meanwhile at once.

        Raises:
            KeyboardInterrupt: when a request comes, or has come.
        """
        self._abandonable = True
        try:
            self.obey()
            yield
        finally:
            self._abandonable = False

    def obey(self) -> None:
        """Raise ``KeyboardInterrupt`` where a request has come."""
        if self.request is not None:
            raise KeyboardInterrupt

    def join(self) -> None:
        """Take over the request of another process of the run."""
        if self.request is None:
            self.request = signal.SIGTERM

    def _take(self, number: signal.Signals, tell: Callable[[signal.Signals], Any]) -> None:
        if os.getpid() != self._process:
            _take_in_child(number)
        elif self.request is None:
            self.request, self._since = number, time.monotonic()
            if hasattr(signal, "SIGCHLD"):
                # Where all processes are told, data workers end, and torch would raise that into the step under way.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            tell(number)
            if self._abandonable:
                raise KeyboardInterrupt
        elif number == signal.SIGINT and time.monotonic() - self._since > _ECHO:
            self.hurried = True
            raise KeyboardInterrupt


def _take_in_child(number: signal.Signals) -> None:
    """Let a forked child die of SIGTERM, as it would without us; on Ctrl-C, it is the parent's to end it."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


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
