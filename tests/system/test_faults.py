"""External failures (signals, memory, workers, disks) end in one line of error, and the run can be resumed."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from kill_harness import differences

from prunekit.cli import main
from prunekit.masks.masks import load_masks

SUPPORT = Path(__file__).parents[1] / "support"

TASK = f"{SUPPORT / 'troubled.py'}:Troubled"
COMMAND = ["run", "--task", TASK, "--criterion", "correlation", "--structure", "hidden=1/4", "--device", "cpu"]
COMMAND += ["-o", "training.budget=13 steps", "-o", "training.retraining=11 steps"]
OFTEN = ["-o", "training.checkpoint_every=4"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def disk(working_folder):
    """Return a file system of one megabyte at "disk"."""
    (working_folder / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "disk"]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:  # noqa: S603 - fixed words
        pytest.skip("only a superuser with the right to mount can make a small disk")
    yield working_folder / "disk"
    subprocess.run(["umount", "-l", "disk"], check=True)  # noqa: S607


def run(*options, out="run", trouble=None):
    """Run the task, with the given trouble."""
    if trouble is not None:
        Path("trouble").write_text(trouble)
    return main([*COMMAND, *options, "--out", out])


def ends_alike(*options, out="run", beside=""):
    """Resume the run and compare it with an undisturbed one, which did not write the checkpoint ``beside``."""
    assert not Path("trouble").exists(), "the trouble did not happen"
    assert main(["run", "--resume", out]) == 0
    Path(out).rename("resumed")
    if beside:
        Path("resumed/checkpoints", beside).unlink()
    assert run(*options, out=out) == 0
    assert differences(Path("resumed"), Path(out)) == []
    assert load_masks("resumed/masks.safetensors").density() == pytest.approx(0.25)


def message(capfd):
    """Return the last line on standard error."""
    return capfd.readouterr().err.splitlines()[-1]


def checkpoints(folder="run"):
    return sorted(path.name for path in Path(folder, "checkpoints").glob("stage-*"))


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_stops_after_the_step_with_a_checkpoint_and_says_how_to_resume(capfd, signal, code):
    assert run(trouble=f"loss 7 {signal}") == code
    errors = capfd.readouterr().err
    assert f"{signal}: stopping after this step and saving a checkpoint" in errors
    assert errors.splitlines()[-1] == (
        f"stopped by {signal}; the newest checkpoint is run/checkpoints/stage-000-step-00000007.safetensors; "
        "resume with: prunekit run --resume run"
    )
    ends_alike()


def test_a_signal_that_also_ends_the_reader_of_the_messages_loses_no_step():
    Path("trouble").write_text("loss 7 SIGINT")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:  # noqa: PTH123 - it has no path
        command = [sys.executable, "-m", "prunekit", *COMMAND, "--out", "run"]
        stopped = subprocess.run(command, stdout=pipe, stderr=pipe, check=False)  # noqa: S603 - the command is the one above
    assert stopped.returncode == 130
    assert checkpoints() == ["stage-000-step-00000007.safetensors"]


@pytest.mark.parametrize("option", ["task.norm=true", "task.draws=true", "task.counts=true"])
def test_a_signal_takes_effect_at_the_end_of_the_step_whatever_the_task(option):
    options = ["-o", option, "-o", "training.accumulate=2"]
    assert run(*options, trouble="loss 19 SIGTERM") == 143  # the first batch of the tenth step
    assert checkpoints() == ["stage-000-step-00000010.safetensors"]
    ends_alike(*options)


def test_checkpoints_of_pruned_layers_do_not_show_that_the_run_was_stopped():
    assert run(*OFTEN, trouble="loss 18 SIGTERM") == 143
    assert checkpoints()[-1] == "stage-001-step-00000005.safetensors"
    ends_alike(*OFTEN)


def test_a_signal_at_the_last_step_of_a_stage_does_not_lose_the_stage():
    assert run(trouble="loss 13 SIGTERM") == 143
    assert checkpoints() == ["stage-000-step-00000013.safetensors"]
    ends_alike()


def test_a_signal_in_the_evaluation_ends_it_at_once_and_does_not_lose_the_stage():
    assert run(trouble="evaluation 1 SIGTERM") == 143
    assert checkpoints() == ["stage-000-step-00000013.safetensors"]
    ends_alike()


def test_a_signal_in_the_statistics_ends_them_at_once():
    assert run(trouble="statistics 2 SIGINT") == 130
    assert checkpoints() == ["stage-001-step-00000000.safetensors"]
    ends_alike()


def test_a_signal_in_statistics_between_steps_keeps_the_steps_before_them():
    options = ["--schedule", "gradual", "-o", "schedule.updates=3"]
    assert run(*options, trouble="statistics 5 SIGTERM") == 143
    assert re.fullmatch(r"stage-000-step-000000(0[1-9]|1\d)\.safetensors", checkpoints()[-1])
    ends_alike(*options, beside=checkpoints()[-1])


def test_a_run_without_a_checkpoint_starts_over_and_says_so(capfd):
    assert run(trouble="loss 7 twice") == 130
    assert "there is no checkpoint yet" in message(capfd)
    ends_alike()
    assert "note: there is no checkpoint; the run starts over" in capfd.readouterr().err


def test_a_second_interrupt_stops_at_once_with_the_earlier_checkpoint(capfd):
    assert run(*OFTEN, trouble="loss 7 twice") == 130
    assert "stopped at once by SIGINT; the newest checkpoint is run/checkpoints/stage-000-step-00000004" in message(
        capfd
    )
    ends_alike(*OFTEN)


@pytest.mark.parametrize("trouble", ["loss 7 all", "batch 7 all"])
def test_a_signal_to_all_processes_ends_the_data_workers_and_loses_no_step(capfd, trouble):
    workers = ["-o", "training.workers=1", "-o", "task.norm=true"]
    assert run(*workers, trouble=trouble) == 143
    assert "stopped by SIGTERM; the newest checkpoint is run/checkpoints/stage-000-step-0000000" in message(capfd)
    ends_alike(*workers)


def test_a_dead_data_worker_is_named_and_loses_no_completed_step(capfd):
    # torch may report it in the middle of a step, of which nothing is saved; then there is an earlier checkpoint.
    often = ["-o", "training.checkpoint_every=2"]
    assert run("-o", "training.workers=1", *often, trouble="batch 6 SIGKILL") == 2
    error = message(capfd)
    assert re.search(r"error: a data worker died \(.+\), .*try fewer \(workers = 0 in run/config.toml\); ", error)
    assert re.search(r"the newest checkpoint is \S+/stage-000-step-0000000\d\.safetensors; resume with: ", error)
    recipe = Path("run/config.toml")
    recipe.write_text(recipe.read_text().replace("workers = 1", "workers = 0"))
    ends_alike("-o", "training.workers=0", *often)


def test_out_of_memory_says_what_fills_the_memory(capfd):
    assert run("-o", "training.accumulate=2", trouble="loss 12 memory") == 2
    error = message(capfd)
    for words in (
        "out of memory on cpu: batches of 32, accumulate 2, fp32; weights 0.0 MiB, gradients 0.0 MiB, optimiser 0.0",
        "activations about 0.1 MiB in fp32",
        "-o training.accumulate=4",
        "stage-000-step-00000005.safetensors; resume with",
    ):
        assert words in error
    ends_alike("-o", "training.accumulate=2")


def test_when_running_statistics_have_changed_the_earlier_checkpoint_is_kept(capfd):
    options = [*OFTEN, "-o", "task.norm=true", "-o", "training.accumulate=2"]
    assert run(*options, trouble="loss 12 memory") == 2
    assert "the newest checkpoint is run/checkpoints/stage-000-step-00000004.safetensors" in message(capfd)
    ends_alike(*options)


@pytest.mark.parametrize("option", ["task.norm=true", "task.draws=true", "task.counts=true"])
def test_changes_of_a_failed_step_are_not_saved(option):
    options = ["-o", option, *OFTEN]
    assert run(*options, trouble="forward 7 memory") == 2
    assert checkpoints() == ["stage-000-step-00000004.safetensors"]
    ends_alike(*options)


def test_an_error_before_the_first_step_of_a_stage_repeats_its_first_mask_update_and_loses_no_line_of_the_log():
    assert run(trouble="loss 14 memory") == 2
    assert checkpoints() == ["stage-001-step-00000000.safetensors"]
    ends_alike()


def test_out_of_memory_for_any_batch_is_reported_without_the_figures_of_a_batch(capfd):
    assert run(*OFTEN, trouble="batch 7 always-memory") == 2
    error = message(capfd)
    assert "error: out of memory on cpu: accumulate 1, fp32; weights" in error
    assert "the newest checkpoint is run/checkpoints/stage-000-step-00000006.safetensors" in error
    Path("trouble").unlink()
    ends_alike(*OFTEN)


def test_a_bug_keeps_its_traceback_and_says_how_to_resume():
    with pytest.raises(ZeroDivisionError) as raised:
        run(trouble="loss 7 bug")
    (note,) = raised.value.__notes__
    assert note == (
        "the newest checkpoint is run/checkpoints/stage-000-step-00000006.safetensors; resume with: "
        "prunekit run --resume run"
    )
    ends_alike()


@pytest.mark.parametrize("often", [[], OFTEN])
def test_a_full_disk_is_one_line_of_error_and_the_run_resumes_when_there_is_room(disk, capfd, often):
    assert run(*often, out="disk/run", trouble="loss 7 fill") == 2
    error = message(capfd)
    assert re.search(r"error: cannot write disk/run/\S+: No space left on device; free some space or", error)
    newest = "the newest checkpoint is disk/run/checkpoints/stage-000-step-00000004" if often else "no checkpoint yet"
    assert newest in error
    assert "resume with: prunekit run --resume disk/run" in error
    (disk / "filler").unlink()
    assert main(["run", "--resume", "disk/run"]) == 0
    disk.joinpath("run").rename(disk / "resumed")
    assert run(*often, out="disk/run") == 0
    assert differences(disk / "resumed", disk / "run") == []


def test_a_disk_that_is_full_when_a_stage_ends_is_reported_once(disk, capfd):
    assert run(out="disk/run", trouble="evaluation 1 fill") == 2
    error = message(capfd)
    assert error.count("No space left on device") == 1
    assert "resume with: prunekit run --resume disk/run" in error


def test_a_disk_that_becomes_read_only_is_one_line_of_error_and_the_run_resumes_afterwards(disk, capfd):
    assert run(*OFTEN, out="disk/run", trouble="loss 7 readonly") == 2
    assert re.search(r"error: cannot write \S+: Read-only file system; choose a folder", message(capfd))
    assert main(["run", "--resume", "disk/run"]) == 2
    assert "Read-only file system" in message(capfd)
    subprocess.run(["umount", "disk/run/checkpoints"], check=True)  # noqa: S607
    assert checkpoints("disk/run") == ["stage-000-step-00000004.safetensors"]
    assert main(["run", "--resume", "disk/run"]) == 0


def test_a_limit_on_the_size_of_files_is_one_line_of_error(capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        assert run(*OFTEN) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"error: cannot write run/checkpoints/stage-\S+: File too large; raise the limit", message(capfd))
    assert not list(Path("run").rglob("*.tmp"))
    ends_alike(*OFTEN)


def test_a_folder_that_vanishes_is_one_line_of_error(capfd):
    assert run(trouble="loss 7 vanish") == 2
    error = message(capfd)
    assert "cannot write run/metrics.jsonl: No such file or directory" in error
    assert error.endswith("the folder run no longer exists, so the run cannot be resumed")


def test_more_bad_steps_than_allowed_stop_the_run_with_a_checkpoint(capfd):
    skipping = ["-o", "training.skip_bad_steps=1", "-o", "task.norm=true"]
    assert run(*skipping, trouble="loss 4 always-nan") == 2
    error = message(capfd)
    assert re.search(
        r"skipped \d+ steps with a non-finite loss .* more than training.skip_bad_steps = 1 allows; check the data",
        error,
    )
    assert checkpoints()
    assert main(["run", "--resume", "run"]) == 2  # skipped steps are not forgotten


def test_bad_steps_are_skipped_and_counted(capfd):
    skipping = ["-o", "training.skip_bad_steps=2", "-o", "task.norm=true"]
    assert run(*skipping, trouble="loss 4 nan") == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch_finished"]
    assert [line["skipped"] for line in epochs] == [1] * len(epochs)
    assert all(line["loss"] is not None for line in epochs)


def test_unless_skipping_is_allowed_the_first_bad_step_ends_the_run(capfd):
    assert run(*OFTEN, trouble="loss 7 nan") == 2
    error = message(capfd)
    assert "the loss is nan at step 7 of 13" in error
    assert "resume with" not in error  # it would end in the same way
    assert checkpoints() == ["stage-000-step-00000004.safetensors"]


def test_stages_that_differ_from_those_of_the_start_are_refused_without_advice_to_resume(capfd):
    assert run() == 0
    recipe = Path("run/config.toml")
    recipe.write_text(recipe.read_text().replace("hidden=1/4", "hidden=1/8"))
    assert main(["run", "--resume", "run"]) == 2
    error = message(capfd)
    assert "run/config.toml now gives different stages from those in run/plan.json" in error
    assert "resume with" not in error


def test_damaged_weights_that_a_stage_starts_from_are_named(capfd):
    assert run("--schedule", "iterative", trouble="loss 7 SIGTERM") == 143
    path = Path("run/checkpoints/weights-initial-00000000.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["run", "--resume", "run"]) == 2
    error = message(capfd)
    assert (
        f"the weights that a stage starts from are lost: checkpoint {path} cannot be read: its content was changed"
        in error
    )
    assert "resume with" not in error


def test_if_no_checkpoint_can_be_read_there_is_no_advice_to_resume(capfd):
    assert run() == 0
    for name in checkpoints():
        Path("run/checkpoints", name).write_bytes(b"")
    assert main(["run", "--resume", "run"]) == 2
    error = message(capfd)
    assert "no checkpoint in run/checkpoints can be read" in error
    assert "resume with" not in error


def test_a_running_run_is_not_resumed_by_a_second_process(working_folder, capfd):
    assert run() == 0
    code = "import sys, pathlib; from prunekit.files.atomic import held_alone\n"
    code += "with held_alone(pathlib.Path('run')): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(  # noqa: S603 - the code is the one above
        [os.sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        assert main(["run", "--resume", "run"]) == 2
        other.stdin.close()
    assert "another process is working in run" in message(capfd)
