import os
import signal
import threading
import time

import pytest

from prunekit.runs import interruption
from prunekit.runs.interruption import Interruption


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_is_noted_and_reported_once_and_the_handlers_are_restored(number, monkeypatch):
    monkeypatch.setattr(interruption, "_ECHO", 1000.0)  # the machine may be slow
    before = signal.getsignal(number), signal.getsignal(signal.SIGCHLD)
    stop, reported = Interruption(), []
    with stop.listening(reported.append):
        stop.raise_if_requested()
        send(number)
        send(number)  # an echo
        with pytest.raises(KeyboardInterrupt):
            stop.raise_if_requested()
    assert (stop.request, reported, stop.immediate) == (number, [number], False)
    assert (signal.getsignal(number), signal.getsignal(signal.SIGCHLD)) == before


def test_a_second_interrupt_stops_at_once_but_a_second_sigterm_does_not(monkeypatch):
    monkeypatch.setattr(interruption, "_ECHO", 0.0)
    stop = Interruption()
    with stop.listening(lambda _: None):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert not stop.immediate
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert stop.immediate
    assert stop.request == signal.SIGTERM


def test_interruptible_work_ends_at_once_even_for_an_earlier_request():
    stop = Interruption()
    with stop.listening(lambda _: None):
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            pytest.fail("it began")


def test_another_thread_does_not_change_the_handlers():
    before, seen = signal.getsignal(signal.SIGINT), []

    def listen():
        with Interruption().listening(seen.append):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on POSIX systems only")
def test_a_forked_child_ignores_an_interrupt_and_dies_of_sigterm():
    stop = Interruption()
    reader, writer = os.pipe()
    with stop.listening(lambda _: os.write(2, b"a child must not report")):
        child = os.fork()
        if child == 0:
            while True:
                os.write(writer, b".")
                time.sleep(0.01)
        os.read(reader, 1)
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert stop.request is None
