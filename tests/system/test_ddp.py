import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunekit

pytestmark = pytest.mark.slow

RUNS = Path(__file__).parents[1] / "support" / "rank_runs.py"
RECIPES = runpy.run_path(str(RUNS))["RECIPES"]
TORCHRUN = str(Path(sys.executable).parent / "torchrun")
# torch warns of parameters that are all used after all; the command line sees to that itself.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def start(*command, ranks=1):
    launcher = [TORCHRUN, "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else [sys.executable]
    return subprocess.Popen(  # noqa: S603 - our own programs
        [*launcher, *map(str, command)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def without_the_end(run, copy):
    """Copy a run as it was in the middle of its last stage."""
    shutil.copytree(run, copy)
    middle, end = sorted((copy / "checkpoints").glob("stage-*"))
    assert middle.name == "stage-001-step-00000004.safetensors"
    end.unlink()
    return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of rank_runs by one process and by two ranks; "begun by" another number of processes: resumed ones."""
    folder = tmp_path_factory.mktemp("ranks")
    code, _, err = finished(start(RUNS, f"all={folder / 'one'}"))
    assert code == 0, err
    begun = without_the_end(folder / "one" / "checkpoints", folder / "begun by one")
    code, _, err = finished(start(RUNS, f"all={folder / 'two'}", f"checkpoints={begun}", ranks=2))
    assert code == 0, err
    return folder


def stages(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "stage_finished"]


def losses(run):
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "epoch_finished"]


def assert_same_run(first, second):
    """Compare masks exactly, weights and losses within rounding, figures."""
    one, two = (prunekit.load_masks(run / "masks.safetensors").tensors for run in (first, second))
    assert one.keys() == two.keys()
    for name, mask in one.items():
        assert torch.equal(mask, two[name]), name
    weights, others = (load_file(run / "model.safetensors") for run in (first, second))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            others[name], weight, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        if name in two:
            assert (others[name][~two[name]] == 0).all()
    assert losses(second) == pytest.approx(losses(first), rel=1e-5)
    for stage, other in zip(stages(first), stages(second), strict=True):
        assert other["kept"] == stage["kept"]
        assert other["evaluation"]["metrics"] == pytest.approx(stage["evaluation"]["metrics"], abs=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_give_the_masks_and_weights_of_one_process(runs, name):
    assert_same_run(runs / "one" / name, runs / "two" / name)


def test_a_run_begun_by_one_process_resumes_with_two(runs):
    assert_same_run(runs / "one" / "checkpoints", runs / "begun by one")


def test_a_run_begun_by_two_processes_resumes_with_one(runs):
    begun = without_the_end(runs / "two" / "checkpoints", runs / "begun by two")
    code, _, err = finished(start(RUNS, f"checkpoints={begun}"))
    assert code == 0, err
    assert_same_run(runs / "two" / "checkpoints", begun)


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_a_run_that_draws_resumes_to_the_same_bytes(runs, ranks):
    whole, resumed = (runs / ranks / name for name in ("dropout", "dropout again"))
    for file in ("masks.safetensors", "model.safetensors"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()


def test_each_rank_draws_its_own_dropout(runs):
    assert losses(runs / "one" / "dropout") != pytest.approx(losses(runs / "two" / "dropout"), rel=1e-3)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("criterion", ["taylor", "wanda"])
def test_a_users_own_loop_with_ddp_equals_one_process(runs, criterion, views):
    one = load_file(runs / "one" / f"{criterion}-{views}-0.safetensors")
    for rank in range(2):
        two = load_file(runs / "two" / f"{criterion}-{views}-{rank}.safetensors")
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
            if name.endswith("_mask"):
                assert (two[name.removesuffix("_mask")][~two[name]] == 0).all()


def test_every_rank_stops_if_masks_differ_and_names_the_layer(runs):
    for rank in range(2):
        error = (runs / "two" / f"error-{rank}.txt").read_text()
        assert "rank 1 and rank 0 chose different masks or repaired weights for layer 'hidden'" in error
    assert stages(runs / "one" / "bad")[-1]["name"] == "pruned"


def test_the_command_runs_under_torchrun_and_the_first_rank_reports(tmp_path):
    arguments = ("-m", "prunekit", "run", "--task", "prunekit.testing:ToyTask", "--criterion", "magnitude")
    short = ("-o", "training.budget=4 steps", "-o", "training.retraining=2 steps", "--out", tmp_path / "run")
    code, out, err = finished(start(*arguments, *short, ranks=2))
    assert code == 0, err
    assert err.count("[1/3] hidden") + err.count("[1/3] dense") == out.count("3 stages in") == 1
    assert "fp32, 2 ranks" in err
    assert "Warning" not in err
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["hardware"].endswith("2 ranks")
    code, out, err = finished(start(*arguments, *short, ranks=2))
    assert code != 0
    assert err.count("already holds a run") == 1
    assert "RuntimeError" not in err
