"""What happens to a run of two ranks from outside: it stops after one step on both, or is gone on with from before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kill_harness import differences

pytestmark = pytest.mark.slow

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
TASK = f"{Path(__file__).with_name('troubled.py')}:Troubled"
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
RUN += ["-o", "training.check_every=3", "-o", "task.norm=true"]


def launch(*arguments, trouble=None):
    """Run prunekit as two ranks, to one of which something happens; return exit code and standard error."""
    if trouble is not None:
        Path("trouble").write_text(trouble)
    command = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "prunekit", *arguments]
    # Our own programs.
    done = subprocess.run(  # noqa: S603
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert not Path("trouble").exists(), "nothing has happened"
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """Return the folder of a run to which nothing happened; all runs are in the same place."""
    place = tmp_path_factory.mktemp("ranks")
    before = Path.cwd()
    os.chdir(place)
    code, errors = launch(*RUN)
    assert code == 0, errors
    Path("run").rename("alone")
    yield place / "alone"
    os.chdir(before)


def newest():
    return max(Path("run/checkpoints").glob("stage-*")).name


def test_ranks_that_are_asked_to_stop_do_after_the_same_step_and_go_on_to_the_same_bytes(left_alone):
    shutil.rmtree("run", ignore_errors=True)
    code, errors = launch(*RUN, trouble="loss 14 launcher")
    assert code != 0
    assert "stopped by SIGTERM; the newest checkpoint is run/checkpoints/stage-000-step-0000001" in errors
    assert errors.count("stopped by") == 1
    assert newest() == "stage-000-step-00000016.safetensors"  # the next look at the loss
    code, errors = launch("run", "--resume", "run")
    assert code == 0, errors
    assert differences(Path("run"), left_alone) == []


def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on_to_the_same_bytes(left_alone):
    shutil.rmtree("run", ignore_errors=True)
    code, errors = launch(*RUN, trouble="loss 24 SIGKILL")
    assert code != 0
    assert "the newest checkpoint is run/checkpoints/stage-000-step-00000020.safetensors; " in errors
    assert "go on with: torchrun --nproc-per-node 2 -m prunekit run --resume run" in errors
    assert newest() == "stage-000-step-00000020.safetensors"
    code, errors = launch("run", "--resume", "run")
    assert code == 0, errors
    assert differences(Path("run"), left_alone) == []
