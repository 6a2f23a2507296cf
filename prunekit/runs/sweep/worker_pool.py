"""Processes that work side by side for this one, and end with it, however it ends.

An error here, Ctrl-C and SIGTERM kill them at once, whatever they are doing; where this process is killed itself, they
notice. This module must not know what they work at, or what becomes of it then.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from signal import SIG_IGN, SIGINT, SIGTERM, Signals, signal
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any

import attrs

from prunekit.errors import Interrupted

Submit = Callable[..., Future[Any]]


@contextmanager
def processes(count: int, begin: Callable[..., object], *arguments: object) -> Iterator[Submit]:
    """Yield a function that has a function of a module called, with arguments, by a process; it returns a future.

    Args:
        count: processes; they start when there is work.
        begin: a function of a module that each of them calls first.
        arguments: what it is called with.

    Raises:
        Interrupted: at Ctrl-C or SIGTERM, to the main thread; the processes are gone then, as after any error.
        BrokenProcessPool: by the function that is yielded or a future, when a process has died.
    """
    others = active_children()
    context = get_context("spawn")  # a fork of a process that has used torch's threads may hang
    request = _Request()
    with request.heard(), ProcessPoolExecutor(count, context, partial(_begin, begin, *arguments)) as pool:
        # One that starts later could die unseen: the thread that watches them was told before it was there.
        pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            yield partial(request.submit, pool)
        except BaseException:
            with request.put_off():
                for process in set(active_children()).difference(others):
                    process.kill()  # not SIGTERM, which can be handled, and which one that is stopped does not hear
            raise  # leaving the pool waits for them: its own thread does, and two that wait for one child race


@attrs.define
class _Request:
    """The first signal that asks this process to stop; a second one would only disturb its end."""

    number: Signals | None = None
    _later: bool = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM (``kill``, ``timeout``, batch systems) as requests; only the main thread can."""
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal(number, self._take) for number in (SIGINT, SIGTERM)}
        try:
            yield
        except KeyboardInterrupt as error:
            if self.number is None:
                raise
            raise Interrupted(f"stopped by {self.number.name}", 128 + self.number) from error
        finally:
            for number, handler in before.items():
                signal(number, handler)

    def submit(self, pool: ProcessPoolExecutor, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Have something called; a process that is started for it ignores Ctrl-C, which is ours to take."""
        with self.put_off():  # nobody would know of a process that is half started
            future = pool.submit(function, *arguments)
        if self.number is not None:
            raise KeyboardInterrupt
        return future

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """Note requests only; Ctrl-C is ignored here and in processes that are started meanwhile."""
        if current_thread() is not main_thread():
            yield
            return
        self._later = True
        before = signal(SIGINT, SIG_IGN)
        try:
            yield
        finally:
            signal(SIGINT, before)
            self._later = False

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = Signals(number)
            if not self._later:
                raise KeyboardInterrupt


def _begin(begin: Callable[..., object], *arguments: object) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    """End this process when its parent has ended: otherwise it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
