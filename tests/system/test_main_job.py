"""The main job as a user starts it: the installed command and the reference task with its defaults."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prunekit


def prunekit_run(*arguments, cwd):
    command = shutil.which("prunekit", path=str(Path(sys.executable).parent))
    assert command, "the package is not installed"
    return subprocess.run([command, "run", *arguments], cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 - our own command


def stages_of(folder):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "stage_finished"]


@pytest.mark.slow
def test_the_main_job_trains_prunes_and_writes_masks_that_fit(tmp_path):
    done = prunekit_run("--criterion", "correlation", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "local5b", "conv4b", "requested", "weights left", "accuracy", "run/masks.safetensors"):
        assert word in done.stdout
    dense, *pruned = stages_of(tmp_path / "run")
    assert 0.80 <= dense["evaluation"]["metrics"]["accuracy"] <= 0.95
    assert [list(stage["requested"]) for stage in pruned] == [["f"], ["local5b"], ["conv4b"]]
    for stage in pruned:
        assert stage["evaluation"]["metrics"]["accuracy"] >= 0.80
        assert stage["weights_left"] < dense["weights_left"]
    masks = prunekit.load_masks(tmp_path / "run" / "masks.safetensors")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert set(masks.tensors) == {"f.weight", "local5b.weight", "conv4b.weight"}
    for name, mask in masks.tensors.items():
        assert torch.equal(weights[name][~mask], torch.zeros(int((~mask).sum())))
        assert bool((weights[name][mask] != 0).all())


@pytest.mark.slow
def test_a_short_run_on_lfw_respects_its_folds_and_learns(tmp_path, lfw):
    short = ["-o", "training.budget=2 epochs", "-o", "training.retraining=5 steps", "--structure", "f=1/64"]
    done = prunekit_run("--data", str(lfw), *short, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "955 people, 4,924 images" in done.stderr
    assert "1,200 pairs" in done.stderr
    dense, pruned = stages_of(tmp_path / "run")
    # Raw images get 0.72 with whitened PCA; two epochs of training must already beat a coin by far.
    assert dense["evaluation"]["metrics"]["auc"] > 0.70
    assert pruned["kept"]["f"] == round(pruned["weights"]["f"] / 64)


@pytest.mark.slow
def test_a_short_run_on_orl_finishes(tmp_path, orl):
    short = ["-o", "training.budget=10 steps", "-o", "training.retraining=5 steps", "--structure", "f=1/64"]
    done = prunekit_run("--data", str(orl), *short, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(stages_of(tmp_path / "run")) == 2
