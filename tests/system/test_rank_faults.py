"""Two ranks under external failures: both stop after the same step, or the run resumes from an earlier checkpoint."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_harness import differences
from kill_ranks import end_all

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = pytest.mark.slow

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TASK = f"{SUPPORT / 'troubled.py'}:Troubled"
RUN = [
    "run",
    "--task",
    TASK,
    "--criterion",
    "magnitude",
    "--structure",
    "hidden=1/4",
    "--device",
    "cpu",
    "--out",
    "run",
]
RUN += ["-o", "training.budget=26 steps", "-o", "training.retraining=8 steps", "-o", "training.checkpoint_every=10"]
RUN += ["-o", "training.check_every=3", "-o", "training.keep_checkpoints=1", "-o", "task.norm=true"]


def command(*arguments, ranks=2):
    return [TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), "-m", "prunekit", *arguments]


def launch(*arguments, ranks=2, **trouble):
    """Run prunekit as several ranks, with trouble for some of them; return exit code and standard error."""
    for name, what in trouble.items():
        Path(f"trouble-{name.removeprefix('rank_')}").write_text(what)
    # Our own programs.
    done = subprocess.run(  # noqa: S603
        command(*arguments, ranks=ranks), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert not list(Path().glob("trouble-*")), "the trouble did not happen"
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the folder of an undisturbed run; all runs use the same place."""
    place = tmp_path_factory.mktemp("ranks")
    before = Path.cwd()
    os.chdir(place)
    code, errors = launch(*RUN)
    assert code == 0, errors
    Path("run").rename("alone")
    yield place / "alone"
    os.chdir(before)


@pytest.fixture(autouse=True)
def _no_run(undisturbed):
    shutil.rmtree("run", ignore_errors=True)


def newest():
    return max(Path("run/checkpoints").glob("stage-*")).name


def ends_alike(undisturbed):
    code, errors = launch("run", "--resume", "run")
    assert code == 0, errors
    assert differences(Path("run"), undisturbed) == []


def test_ranks_stop_after_the_same_step_and_resume_to_the_same_bytes(undisturbed):
    code, errors = launch(*RUN, rank_1="loss 14 launcher")
    assert code != 0
    assert "stopped by SIGTERM; the newest checkpoint is run/checkpoints/stage-000-step-0000001" in errors
    assert errors.count("stopped by") == 1
    assert newest() == "stage-000-step-00000016.safetensors"  # the next reading of the loss
    ends_alike(undisturbed)


def test_a_signal_in_the_last_evaluation_ends_it_at_once_on_all_ranks_and_loses_no_step(undisturbed):
    code, errors = launch(*RUN, rank_0="evaluation 2 launcher")
    assert code != 0
    assert "stopped by SIGTERM; the newest checkpoint is run/checkpoints/stage-001-step-00000008" in errors
    ends_alike(undisturbed)


def test_only_the_rank_that_fails_reports_an_error():
    code, errors = launch(*RUN, rank_1="loss 14 memory")
    assert code != 0
    assert errors.count("error: ") == errors.count("error: out of memory on cpu: batches of 32") == 1
    assert newest() == "stage-000-step-00000010.safetensors"


def test_ranks_that_fail_alike_save_the_steps_before_and_resume_to_the_same_bytes(undisturbed):
    code, errors = launch(*RUN, rank_0="loss 15 bug", rank_1="loss 15 bug")
    assert code != 0
    assert "ZeroDivisionError: a bug" in errors
    assert newest() == "stage-000-step-00000014.safetensors"
    ends_alike(undisturbed)


def test_a_job_that_is_killed_as_a_whole_resumes_to_the_same_bytes(undisturbed):
    with subprocess.Popen(command(*RUN), env=ENVIRONMENT, stderr=subprocess.PIPE) as launcher:  # noqa: S603 - our own
        while not Path("run/checkpoints/stage-000-step-00000010.safetensors").exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        end_all(launcher.pid)
    assert Path("run/metrics.jsonl").read_text().count("stage_finished") < 2, "the run had finished"
    ends_alike(undisturbed)


def test_a_rank_that_dies_ends_the_others_and_the_run_resumes_to_the_same_bytes(undisturbed):
    code, errors = launch(*RUN, rank_1="loss 24 SIGKILL")
    assert code != 0
    assert errors.count("error: ") == errors.count("lost contact with another rank") == 1
    assert "the newest checkpoint is run/checkpoints/stage-000-step-00000020.safetensors; " in errors
    assert "resume with: torchrun --nproc-per-node 2 -m prunekit run --resume run" in errors
    assert newest() == "stage-000-step-00000020.safetensors"
    ends_alike(undisturbed)
