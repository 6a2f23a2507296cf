import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import attrs
import pytest

from prunekit.errors import CheckpointError, TrainingError
from prunekit.masks.masks import load_masks
from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.folder import RunFolder
from prunekit.runs.sweep.cells import make_cells
from prunekit.runs.sweep.execution import ExecutionSettings, carry_out_runs
from prunekit.runs.sweep.grid import read_grid
from prunekit.runs.sweep.run_tree import stage_runs

pytestmark = pytest.mark.system  # whole runs in processes of their own

RECIPE = {
    "task": {"name": "prunekit.testing:ToyTask"},
    "training": {"budget": "12 steps", "retraining": "6 steps"},
    "sweep": {
        "structures": ["hidden=1/4", "hidden=1/4 b=1/2"],
        "criteria": ["correlation", "magnitude"],
        "kept_correlation": True,
    },
}


def plan(recipe=RECIPE, seeds=(0,)):
    manager = make_manager(third_party=False)
    cells = make_cells(read_grid(recipe), manager, collect(manager))
    return cells, [run for seed in seeds for cell in cells for run in stage_runs(cell, seed)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Carry out a small sweep once: settings, cells, runs, outcomes, and names in the order of completion."""
    settings = ExecutionSettings(tmp_path_factory.mktemp("sweep"), 2, 1, ("cpu", "cpu"), kept_correlation=True)
    cells, runs = plan()
    order = []
    outcomes = carry_out_runs(runs, settings, lambda run, _outcome, left: order.append((run.name, left)))
    return settings, cells, runs, outcomes, order


def test_every_run_is_carried_out_once_and_after_the_run_that_it_continues(done):
    _, _, runs, outcomes, order = done
    names = [name for name, _ in order]
    assert sorted(names) == sorted({run.name for run in runs}) == sorted(outcomes)
    assert all(run.parent is None or names.index(run.parent) < names.index(run.name) for run in runs)
    assert [left for _, left in order] == list(range(len(order)))[::-1]


def test_a_run_of_a_sweep_gives_the_bytes_of_the_same_run_by_itself(done, toy_run):
    settings, cells, *_ = done
    cell = next(cell for cell in cells if str(cell) == "hidden=1/4 b=1/2; correlation; layerwise")
    last = list(stage_runs(cell, 0))[-1]
    recipe = {key: value for key, value in RECIPE.items() if key != "sweep"}
    finished, _, alone = toy_run({**recipe, "structure": "hidden=1/4 b=1/2", "criterion": {"name": "correlation"}})
    shared = RunFolder(settings.folder / last.name)
    assert shared.model.read_bytes() == alone.model.read_bytes()
    assert shared.masks.read_bytes() == alone.masks.read_bytes()
    events = [json.loads(line)["event"] for line in shared.metrics.read_text().splitlines()]
    assert events == [json.loads(line)["event"] for line in alone.metrics.read_text().splitlines()]
    outcome = json.loads((shared.path / "result.json").read_text())
    assert outcome["metrics"]["accuracy"] == finished.stages[-1].evaluation.metrics["accuracy"]


def test_a_control_prunes_nothing(done):
    settings, cells, _, outcomes, _ = done
    for cell in cells:
        last = list(stage_runs(cell, 0))[-1]
        if cell.kind == "pruned":
            assert outcomes[last.name].kept < outcomes[last.name].weights
        else:
            assert outcomes[last.name].kept == outcomes[last.name].weights
            assert not load_masks_of(settings, last)


def load_masks_of(settings, run):
    folder = RunFolder(settings.folder / run.name)
    return load_masks(folder.masks).tensors if folder.masks.exists() else {}


def test_correlations_are_measured_where_something_was_pruned(done):
    *_, runs, outcomes, _ = done
    for run in runs:
        outcome = outcomes[run.name]
        assert set(outcome.correlation_before) == set(outcome.correlation_after) == set(run.layers)
        assert all(0 < value < 1 for value in outcome.correlation_before.values())


def test_complete_runs_are_not_repeated(done):
    settings, _, runs, outcomes, _ = done
    again = []
    assert carry_out_runs(runs, settings, lambda run, *_: again.append(run.name)) == outcomes
    assert not again


def test_an_interrupted_run_is_resumed_and_ends_with_the_same_bytes(done):
    settings, _, runs, outcomes, _ = done
    run = runs[-1]
    folder = RunFolder(settings.folder / run.name)
    before = folder.model.read_bytes()
    (folder.path / "result.json").unlink()
    for path in folder.checkpoints.glob("*"):  # as if it had been interrupted in its last stage
        if path.name.startswith(f"stage-{run.stages:03d}"):
            path.unlink()
    again = []
    found = carry_out_runs(runs, settings, lambda run, *_: again.append(run.name))
    assert again == [run.name]
    assert folder.model.read_bytes() == before
    assert found[run.name].metrics == outcomes[run.name].metrics


def test_an_unreadable_result_is_refused_with_its_file_and_the_next_step(done):
    settings, _, runs, _, _ = done
    path = settings.folder / runs[0].name / "result.json"
    before = path.read_text()
    path.write_text(before[:20])
    try:
        with pytest.raises(CheckpointError, match=r"result\.json cannot be read: .*; remove the folder"):
            carry_out_runs(runs, settings)
    finally:
        path.write_text(before)


def test_a_run_that_diverges_is_named_and_finished_runs_are_kept(tmp_path):
    task = tmp_path / "wild.py"
    task.write_text(
        "import attrs, torch\n"
        "from prunekit.testing import ToyTask\n"
        "@attrs.frozen\n"
        "class Wild(ToyTask):\n"
        "    name = 'wild'\n"
        "    def loss(self, model, batch):\n"
        "        loss = super().loss(model, batch)\n"
        "        return loss / 0.0 if bool((model.hidden.weight == 0).any()) else loss\n"
    )
    _, runs = plan({**RECIPE, "task": {"name": f"{task}:Wild"}})
    settings = ExecutionSettings(tmp_path / "runs", 1, 1, ("cpu",))
    with pytest.raises(TrainingError, match=r"run seed0-dense.hidden-.*: the loss is inf at step .*the same command"):
        carry_out_runs(runs, settings)
    assert (settings.folder / runs[0].name / "result.json").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_whose_process_dies_is_named(tmp_path, jobs):
    task = tmp_path / "dying.py"
    task.write_text(
        "import attrs, os\n"
        "from prunekit.testing import ToyTask\n"
        "@attrs.frozen\n"
        "class Dying(ToyTask):\n"
        "    name = 'dying'\n"
        "    def loss(self, model, batch):\n"
        "        os._exit(1)\n"
    )
    _, runs = plan({**RECIPE, "task": {"name": f"{task}:Dying"}}, seeds=range(jobs))
    with pytest.raises(TrainingError, match=r"seed0-dense-\w+( or seed1-dense-\w+)? died, .*fewer --jobs") as raised:
        carry_out_runs(runs, ExecutionSettings(tmp_path / "runs", jobs, 1, ("cpu",) * jobs))
    assert str(raised.value).count("seed") == jobs
    assert not multiprocessing.active_children()


def test_the_cores_and_gpus_of_this_machine_are_divided_among_the_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)  # of a batch job
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    here = ExecutionSettings.for_this_machine(tmp_path, "auto", None, kept_correlation=False)
    assert (here.jobs, here.threads, here.devices) == (8, 1, ("auto",) * 8)
    assert attrs.astuple(ExecutionSettings.for_this_machine(tmp_path, "cpu", 3, kept_correlation=True))[1:3] == (3, 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    on_gpus = partial(ExecutionSettings.for_this_machine, tmp_path, "auto", kept_correlation=False)
    assert on_gpus(None).devices == ("cuda:0", "cuda:1")
    assert on_gpus(3).devices == ("cuda:0", "cuda:1", "cuda:0")


def test_an_interrupted_sweep_leaves_no_process_behind_and_can_be_continued(tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    _, runs = plan({**RECIPE, "sweep": {"structures": ["hidden=1/4"], "criteria": ["magnitude"]}})
    settings = ExecutionSettings(tmp_path / "runs", 1, 1, ("cpu",))
    monkeypatch.setattr("prunekit.runs.sweep.execution.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out_runs(runs, settings)
    monkeypatch.undo()
    assert not multiprocessing.active_children()
    assert len(carry_out_runs(runs, settings)) == 3


@pytest.fixture
def two_at_work(tmp_path):
    """Start a sweep with two long runs in a process session of its own, and wait until both have begun."""
    recipe = tmp_path / "small.toml"
    recipe.write_text('[task]\nname = "prunekit.testing:ToyTask"\n[training]\nbudget = "1000000 steps"\n[sweep]\n')
    options = ["--seeds", "2", "--jobs", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "prunekit", "sweep", str(recipe), *options]
    # The command is the one above.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as sweep:  # noqa: S603
        try:
            while len(list((tmp_path / "runs").glob("seed*/config.toml"))) < 2:
                assert sweep.poll() is None
                time.sleep(0.1)
            yield sweep
        finally:
            with suppress(ProcessLookupError):
                os.killpg(sweep.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("to", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT), (os.kill, signal.SIGKILL)]
)
def test_a_sweep_that_is_stopped_ends_its_runs_and_says_how_to_continue(two_at_work, to, number):
    to(two_at_work.pid, number)
    _, errors = two_at_work.communicate(timeout=60)  # waits for every process that holds the pipe
    if number == signal.SIGKILL:
        assert two_at_work.returncode == -number
        return
    assert two_at_work.returncode == 128 + number
    assert errors.decode() == (
        f"stopped by {number.name}; finished runs are kept, and the same command continues from there\n"
    )
