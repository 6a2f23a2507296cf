"""Worker processes never outlive their program; each test starts a program of its own and waits for its end."""

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
        if program.returncode is None:  # it hangs
            os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def ends(program):
    """Return exit code and last line of standard error, once the program and all its children have closed it."""
    _, errors = program.communicate(timeout=60)
    return program.returncode, errors.splitlines()[-1] if errors else ""


def test_calls_run_in_other_processes_and_their_errors_are_raised(start):
    program = start("""
    assert submit(os.getppid).result() == os.getpid()
    assert submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    assert submit(signal.getsignal, signal.SIGTERM).result() == signal.SIG_IGN
    assert isinstance(submit(int, "a").exception(), ValueError)
""")
    assert ends(program) == (0, "")


def test_an_error_ends_busy_and_idle_processes_even_if_they_ignore_sigterm(start):
    program = start("""
    submit(time.sleep, 1000), submit(os.getpid).result()
    1 / 0
""")
    assert ends(program) == (1, "ZeroDivisionError: division by zero")


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", [os.kill, os.killpg])
def test_a_request_to_stop_ends_all_processes(start, number, to):
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


def test_a_request_during_the_start_of_a_process_is_deferred(start):
    program = start("""
    spawn = util.spawnv_passfds
    def interrupted(*arguments):
        started = spawn(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return started
    util.spawnv_passfds = interrupted
    submit(time.sleep, 1000)
    say("it continued")
""")
    out, errors = program.communicate(timeout=60)
    assert (program.returncode, out) == (1, "")
    assert errors.endswith("prunekit.errors.Interrupted: stopped by SIGTERM\n")


def test_a_process_that_dies_breaks_its_future_and_ends_the_others(start):
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
def test_further_requests_do_not_disturb_the_shutdown(start, where, why, last):
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


def test_processes_exit_when_their_parent_is_killed(start):
    program = start("""
    submit(time.sleep, 1000), submit(os.getpid).result()
    say("at work")
    time.sleep(1000)
""")
    assert program.stdout.readline() == "at work\n"
    program.kill()
    assert ends(program)[0] == -signal.SIGKILL


def test_signals_are_not_handled_outside_the_main_thread(start):
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
