"""Each test is a program of its own, since what is at stake is whether it ends, and leaves nobody behind."""

import os
import signal
import subprocess
import sys

import pytest

BEGIN = """
import os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import process, util
from prunekit.runs.sweep.worker_pool import worker_processes

def say(*words):
    print(*words, flush=True)

with worker_processes(2, signal.signal, signal.SIGTERM, signal.SIG_IGN) as submit:
"""


@pytest.fixture
def start():
    """Return a function that starts a program, whose processes ignore SIGTERM, in a session of its own."""
    started = []

    def go(program):
        started.append(
            subprocess.Popen(  # noqa: S603 - the code below
                [sys.executable, "-c", BEGIN + program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield go
    for program in started:
        if program.returncode is None:  # it did not end
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def ends(program):
    """Return exit code and last line of standard error, once the program and all that it started have closed it."""
    _, errors = program.communicate(timeout=60)
    return program.returncode, errors.splitlines()[-1] if errors else ""


def test_work_is_done_side_by_side_and_what_it_raises_is_raised(start):
    program = start("""
    assert submit(os.getppid).result() == os.getpid()
    assert submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    assert submit(signal.getsignal, signal.SIGTERM).result() == signal.SIG_IGN
    assert isinstance(submit(int, "a").exception(), ValueError)
""")
    assert ends(program) == (0, "")


def test_an_error_ends_processes_that_are_at_work_and_idle_ones_whatever_they_ignore(start):
    program = start("""
    submit(time.sleep, 1000), submit(os.getpid).result()
    1 / 0
""")
    assert ends(program) == (1, "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", [os.kill, os.killpg])
def test_a_request_to_stop_ends_them(start, number, to):
    program = start("""
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM)
    work = submit(time.sleep, 1000)
    submit(os.getpid).result()
    say("at work")
    work.result()
""")
    assert program.stdout.readline() == "at work\n"
    to(program.pid, number)
    assert ends(program) == (1, f"prunekit.errors.Interrupted: stopped by {number.name}")


def test_a_request_while_a_process_starts_waits_until_it_can_be_ended(start):
    program = start("""
    spawn = util.spawnv_passfds
    def asked_to_stop(*arguments):
        started = spawn(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return started
    util.spawnv_passfds = asked_to_stop
    submit(time.sleep, 1000)
    say("it went on")
""")
    out, errors = program.communicate(timeout=60)
    assert (program.returncode, out) == (1, "")
    assert errors.endswith("prunekit.errors.Interrupted: stopped by SIGTERM\n")


def test_one_that_dies_is_told_by_its_work_and_ends_the_others(start):
    program = start("""
    submit(time.sleep, 1000)
    submit(os._exit, 1).result()
""")
    code, error = ends(program)
    assert code == 1
    assert error.startswith("concurrent.futures.process.BrokenProcessPool: ")


@pytest.mark.parametrize(
    ("where", "why", "last"),
    [
        ("process.BaseProcess.kill", "1 / 0", "ZeroDivisionError: division by zero"),
        ("ProcessPoolExecutor.shutdown", "os.kill(os.getpid(), signal.SIGTERM)", "Interrupted: stopped by SIGTERM"),
    ],
)
def test_further_requests_do_not_disturb_the_end(start, where, why, last):
    program = start(f"""
    whole = {where}
    def disturbed(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)
    {where} = disturbed
    submit(time.sleep, 1000), submit(os.getpid).result()
    {why}
""")
    code, error = ends(program)
    assert code == 1
    assert error.endswith(last)


def test_processes_notice_that_theirs_was_killed(start):
    program = start("""
    submit(time.sleep, 1000), submit(os.getpid).result()
    say("at work")
    time.sleep(1000)
""")
    assert program.stdout.readline() == "at work\n"
    program.kill()
    assert ends(program)[0] == -signal.SIGKILL


def test_in_another_thread_there_are_no_signals_to_take(start):
    program = start("""
    pass
from threading import Thread
def work():
    with worker_processes(1, os.getpid) as submit:
        say(submit(int, "7").result())
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
thread = Thread(target=work)
thread.start()
thread.join()
assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
""")
    assert program.communicate(timeout=60) == ("7\n", "")
