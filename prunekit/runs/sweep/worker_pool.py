"""Worker processes that never outlive the process that started them.

An error in this process, Ctrl-C and SIGTERM kill them at once; if this process is killed, they exit by themselves. This
module must not know what they work on.
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
def worker_processes(count: int, begin: Callable[..., object], *arguments: object) -> Iterator[Submit]:
    """Start worker processes, and yield a function that submits calls to them.

        with worker_processes(4, torch.set_num_threads, 1) as submit:
            futures = [submit(math.factorial, number) for number in range(10)]

    Args:
        count: number of processes; they start when there is work.
        begin: a module-level function that each process calls first.
        arguments: of ``begin``.

    Raises:
        Interrupted: in the main thread, on Ctrl-C or SIGTERM; the processes have ended, as after any error.
        BrokenProcessPool: from ``submit`` or a future, when a process has died.
    """
    others = active_children()
    context = get_context("spawn")  # a forked child of a process that has used torch's threads may hang
    request = _Request()
    with request.listening(), ProcessPoolExecutor(count, context, partial(_begin, begin, *arguments)) as pool:
        # A process that starts later could die unnoticed: the watching thread knows only those that existed before.
        pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]  # noqa: SLF001
        try:
            yield partial(request.submit, pool)
        except BaseException:
            with request.deferred():
                for process in set(active_children()).difference(others):
                    process.kill()  # not SIGTERM, which can be handled, and which a stopped process does not receive
            raise  # the pool's own thread waits for them; waiting here as well would be a race for the exit status


@attrs.define
class _Request:
    """The first signal that requests a stop; later signals are ignored, so that they cannot disturb the shutdown."""

    number: Signals | None = None
    _deferred: bool = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat Ctrl-C and SIGTERM (``kill``, ``timeout``, batch systems) as requests; main thread only."""
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

    def submit(
        self, pool: ProcessPoolExecutor, function: Callable[..., Any], *arguments: object, **options: object
    ) -> Future[Any]:
        """Submit a call; a process that is started for it ignores Ctrl-C, which this process handles."""
        with self.deferred():  # an interruption would leave a half-started process that nobody knows
            future = pool.submit(function, *arguments, **options)
        if self.number is not None:
            raise KeyboardInterrupt
        return future

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record requests within the context; processes that are started in it ignore Ctrl-C."""
        if current_thread() is not main_thread():
            yield
            return
        self._deferred = True
        before = signal(SIGINT, SIG_IGN)
        try:
            yield
        finally:
            signal(SIGINT, before)
            self._deferred = False

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = Signals(number)
            if not self._deferred:
                raise KeyboardInterrupt


def _begin(begin: Callable[..., object], *arguments: object) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    """Exit when the parent process has ended; otherwise this process would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
