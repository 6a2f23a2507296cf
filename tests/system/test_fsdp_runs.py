"""Runs with a sharded model: their results, and resuming their checkpoints with other numbers of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import chdir
from pathlib import Path

import attrs
import pytest
import torch
from kill_harness import differences
from safetensors.torch import load_file
from torch import distributed, nn

from prunekit import cli
from prunekit.contracts.markers import hookimpl
from prunekit.errors import CheckpointError, ConfigError, TrainingError
from prunekit.masks.masks import load_masks
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config
from prunekit.runs.stages.stage import StageTraining
from prunekit.testing import ToyTask

SUPPORT = Path(__file__).parents[1] / "support"

RECIPES = {
    "magnitude": {},
    "correlation": {},
    "obs": {"schedule": {"name": "one-shot"}, "density": 0.5},
    "movement": {"schedule": {"name": "gradual", "updates": 4}},
    "snip": {"schedule": {"name": "one-shot"}, "scope": "global"},
    "rigl": {"criterion": {"name": "magnitude"}, "schedule": {"name": "rigl"}, "density": 0.3},
    "rewinding": {"criterion": {"name": "magnitude"}, "schedule": {"name": "iterative"}, "density": 0.3},
    "channels": {
        "criterion": {"name": "taylor"},
        "schedule": {"name": "gradual", "updates": 4},
        "density": 0.5,
        "pattern": "channels",
    },
    "accumulation": {
        "criterion": {"name": "magnitude"},
        "training": {"accumulate": 2, "clip_norm": 0.5, "precision": "fp16"},
    },
}


@attrs.frozen
class Uneven(ToyTask):
    """The toy task with AdamW, batch normalisation, dropout with p = 0, and layers of odd sizes."""

    name = "uneven"

    def build_model(self):
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU()),
            nn.ModuleDict({"flat": nn.Flatten()})["flat"],
            nn.Linear(252, 9),
            nn.Tanh(),
            nn.Linear(9, self.classes),
        )

    def activations(self, network):
        return {}

    def optimizer(self, model):
        # With a small eps, sums that are 0 but for rounding would move weights.
        return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


@attrs.frozen
class Large(ToyTask):
    """Too large for the memory."""

    name = "large"

    def loss(self, model, batch):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


class Tasks:
    """The plugin of the tasks above."""

    @hookimpl
    def prunekit_tasks(self):
        return [Uneven, Large]


def go(folder, recipe, resume=False):
    """Run on all processes of the group; return what the run reports."""
    training = {"budget": "16 steps", "retraining": "8 steps", "checkpoint_every": 3, "parallel": "fsdp"}
    training |= recipe.get("training", {})
    asked = {"task": {"name": "uneven"}, **recipe, "training": training}
    asked |= {} if "density" in asked else {"structure": "2=1/4 0.0=1/2"}
    config = build_config(asked)
    manager = make_manager(third_party=False)
    manager.add(Tasks(), Source("uneven", "tests"))
    prepared = prepare(config, manager, collect(manager), resumed=resume)
    finished = run(config, prepared, manager.hook, RunFolder(Path(folder)), resume=resume)
    return [(stage.kept, stage.evaluation.metrics["accuracy"]) for stage in finished.stages]


def results(folder):
    return load_masks(folder / "masks.safetensors"), load_file(folder / "model.safetensors")


def assert_same(first, second, tolerance=1e-4):
    (first_masks, first_weights), (second_masks, second_weights) = results(first), results(second)
    assert first_masks == second_masks
    assert first_weights.keys() == second_weights.keys()
    for name, weight in first_weights.items():
        torch.testing.assert_close(weight, second_weights[name], rtol=tolerance, atol=tolerance / 10)
        mask = first_masks.tensors.get(name)
        assert mask is None or (weight[~mask] == 0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_sharded_run_equals_one_process(two_ranks, tmp_path, name):
    recipe = {"criterion": {"name": name}, **RECIPES[name]}
    alone = go(tmp_path / "alone", recipe)
    for together in two_ranks.run(go, str(tmp_path / "together"), recipe):
        assert [kept for kept, _ in together] == [kept for kept, _ in alone]
        assert [accuracy for _, accuracy in together] == pytest.approx([accuracy for _, accuracy in alone], abs=0.01)
    half = recipe.get("training", {}).get("precision") == "fp16"  # which has 11 bits
    assert_same(tmp_path / "alone", tmp_path / "together", tolerance=1e-2 if half else 1e-4)


def stopped_in_the_middle(folder):
    """Take the last checkpoint from a finished run, as if it had been killed in its last stage."""
    newest = max((folder / "checkpoints").glob("stage-*"))
    assert "step-00000000" in newest.name
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    left = max((folder / "checkpoints").glob("stage-*"))
    assert "step-00000006" in left.name
    for name in ("masks.safetensors", "model.safetensors"):
        (folder / name).unlink()
    return left


@pytest.fixture
def recipe():
    return {"criterion": {"name": "magnitude"}}


def test_a_run_of_two_processes_resumes_with_one_and_to_the_same_bytes_with_two(two_ranks, tmp_path, recipe):
    whole = tmp_path / "whole"
    two_ranks.run(go, str(whole), recipe)
    for name in ("one", "two"):
        shutil.copytree(whole, tmp_path / name)
        assert stopped_in_the_middle(tmp_path / name).suffix == ".sharded"
    go(tmp_path / "one", recipe, resume=True)
    assert_same(whole, tmp_path / "one")
    two_ranks.run(go, str(tmp_path / "two"), recipe, True)
    for name in ("masks.safetensors", "model.safetensors"):
        assert (whole / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_run_of_one_process_resumes_with_two(two_ranks, tmp_path, recipe):
    go(tmp_path / "whole", recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "two")
    assert stopped_in_the_middle(tmp_path / "two").suffix == ".safetensors"
    two_ranks.run(go, str(tmp_path / "two"), recipe, True)
    assert_same(tmp_path / "whole", tmp_path / "two")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_sharded_unevenly_over_three_resumes_with_two_and_equals_one_process(
    three_ranks, two_ranks, tmp_path, recipe, parallel
):
    recipe = {"criterion": {"name": "correlation"}, "training": {"parallel": parallel}}
    go(tmp_path / "alone", recipe)
    three_ranks.run(go, str(tmp_path / "three"), recipe)
    assert_same(tmp_path / "alone", tmp_path / "three")
    stopped_in_the_middle(tmp_path / "three")
    two_ranks.run(go, str(tmp_path / "three"), recipe, True)
    assert_same(tmp_path / "alone", tmp_path / "three")


def test_sums_over_training_steps_resume_with_another_number_of_processes(two_ranks, tmp_path):
    recipe = {"criterion": {"name": "movement"}, "schedule": {"name": "gradual", "updates": 4}}
    recipe["training"] = {"budget": "8 steps"}
    two_ranks.run(go, str(tmp_path / "whole"), recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "one")
    stopped_in_the_middle(tmp_path / "one")
    go(tmp_path / "one", recipe, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "one")


@pytest.mark.parametrize("damage", ["no header", "no part", "half a part"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(two_ranks, tmp_path, recipe, damage):
    folder = tmp_path / "run"
    two_ranks.run(go, str(folder), recipe)
    newest = max((folder / "checkpoints").glob("stage-*"))
    part = max(newest.glob("shard-*"))
    if damage == "no header":
        (newest / "checkpoint.json").unlink()
    elif damage == "no part":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    before = results(folder)
    two_ranks.run(go, str(folder), recipe, True)
    after = results(folder)
    assert before[0] == after[0]
    assert all(torch.equal(weight, after[1][name]) for name, weight in before[1].items())


def test_only_complete_checkpoints_remain(two_ranks, tmp_path, recipe):
    two_ranks.run(go, str(tmp_path / "run"), recipe)
    paths = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["stage-002-step-00000006.sharded", "stage-003-step-00000000.sharded"]
    for path in paths:
        assert len(list(path.glob("*.safetensors"))) == 2
        header = json.loads((path / "checkpoint.json").read_text())
        assert header["tensors"]["model/2.weight"] == ["float32", [9, 252], True]


def refuse(folder, recipe):
    with pytest.raises(ConfigError, match=r"needs the whole network at once.*use 'ddp'"):
        go(folder, recipe)


def run_out_of_memory(folder, recipe):
    with pytest.raises(TrainingError, match="out of memory on cpu: batches of 32, accumulate 1, fp32; weights"):
        go(folder, recipe)


def test_too_little_memory_is_not_reported_as_a_fault_of_the_model(two_ranks, tmp_path):
    recipe = {"task": {"name": "large"}, "criterion": {"name": "magnitude"}, "density": 0.5}
    two_ranks.run(run_out_of_memory, str(tmp_path / "run"), recipe)


@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_a_criterion_that_needs_the_whole_network_is_refused_before_training(two_ranks, tmp_path, name):
    two_ranks.run(refuse, str(tmp_path / "run"), {"criterion": {"name": name}, "schedule": {"name": "one-shot"}})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_cannot_be_written_is_a_clear_error(two_ranks, tmp_path, recipe):
    two_ranks.run(save_into_a_file, str(tmp_path))


def save_into_a_file(folder):
    from prunekit.runs.checkpoints.checkpoint import Checkpoint
    from prunekit.runs.checkpoints.sharded import save_sharded

    (Path(folder) / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*stage-000-step-00000001\.sharded"):
        save_sharded(Path(folder) / "file", Checkpoint(0, 1, {"model": {"a": torch.ones(2)}}, None, {}))


def compile_it(folder, recipe):
    """Run, compiled; return the number of compiled graphs."""
    from torch import _dynamo as dynamo

    dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the compiler's own
        go(folder, {**recipe, "training": {**recipe["training"], "compile": True}})
    return dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_sharded_model_is_compiled_once_for_all_stages_and_masks(two_ranks, tmp_path, recipe):
    recipe["training"] = {"budget": "6 steps", "retraining": "3 steps"}
    two_ranks.run(go, str(tmp_path / "plain"), recipe)
    assert two_ranks.run(compile_it, str(tmp_path / "compiled"), recipe) == [1, 1]
    assert_same(tmp_path / "plain", tmp_path / "compiled")


def main_in_trouble(place, arguments):
    """Run a command line in a folder with trouble for some ranks, and return its exit code."""
    with chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(distributed.get_rank()))
        return cli.main(arguments)


TROUBLED = ["run", "--task", f"{SUPPORT / 'troubled.py'}:Troubled", "--criterion", "correlation"]
TROUBLED += ["--structure", "hidden=1/4", "-o", "training.parallel=fsdp", "--out", "run", "-o", "task.norm=true"]
TROUBLED += ["-o", "training.budget=12 steps", "-o", "training.retraining=8 steps", "-o", "training.check_every=3"]
TROUBLED += ["-o", "training.keep_checkpoints=1"]
REQUESTS = {
    "loss 8 SIGTERM": "stage-000-step-00000009",  # the next look at the loss
    "evaluation 2 SIGTERM": "stage-001-step-00000008",
    "statistics 2 SIGTERM": "stage-001-step-00000000",
}


@pytest.fixture(scope="module")
def left_alone(two_ranks, tmp_path_factory):
    """Return the folder of an undisturbed run; all runs are in the same place."""
    place = tmp_path_factory.mktemp("alone")
    assert two_ranks.run(main_in_trouble, str(place), TROUBLED) == [0, 0]
    return (place / "run").rename(place / "alone")


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_signal_to_one_process_stops_both_at_once_and_they_resume_to_the_same_bytes(two_ranks, left_alone, request_):
    place = left_alone.parent
    shutil.rmtree(place / "run", ignore_errors=True)
    (place / "trouble-1").write_text(request_)
    assert two_ranks.run(main_in_trouble, str(place), TROUBLED) == [143, 143]
    assert not (place / "trouble-1").exists(), "nothing has happened"
    (checkpoint,) = (place / "run" / "checkpoints").glob("stage-*")
    assert checkpoint.name == f"{REQUESTS[request_]}.sharded"
    assert two_ranks.run(main_in_trouble, str(place), ["run", "--resume", "run"]) == [0, 0]
    assert differences(place / "run", left_alone) == []


def main_with_a_late_request(place):
    """Run the command; one process gets a signal after both have checked the loss and found no signal."""
    finish = StageTraining._finish_epoch

    def finish_and_request(self, step):
        finish(self, step)
        if distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTraining, "_finish_epoch", finish_and_request)
        return main_in_trouble(place, TROUBLED)


def test_a_signal_after_a_check_of_the_loss_is_obeyed_at_the_next_check(two_ranks, tmp_path):
    assert two_ranks.run(main_with_a_late_request, str(tmp_path)) == [143, 143]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("stage-*")
    assert checkpoint.name == "stage-000-step-00000012.sharded"  # the epoch ended at step 10


VIT = ["--task", "images", "-o", "task.network=vit", "-o", "task.width=16", "-o", "task.blocks=2"]
# The embedded default in double precision: in its first steps rounding grows fast. In two stages: each is evaluated.
FACES = ["--task", f"{SUPPORT / 'rank_runs.py'}:ExactFaces", "--precision", "fp32"]
FACES += ["--schedule", "one-shot"]


def command(options, out, steps):
    budgets = [f"training.budget={steps} steps", "training.retraining=1 steps", "training.parallel=fsdp"]
    return ["run", *options, "--criterion", "correlation", "--out", str(out), *(f"-o{budget}" for budget in budgets)]


def main_in_each(options, out):
    assert cli.main(command(options, out, 1)) == 0


def test_the_command_shards_the_default_network(two_ranks, tmp_path):
    two_ranks.run(main_in_each, FACES, str(tmp_path / "together"))
    assert cli.main(command(FACES, tmp_path / "alone", 1)) == 0
    assert_same(tmp_path / "alone", tmp_path / "together")


def test_torchrun_shards_a_transformer(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = [*torchrun, "-m", "prunekit", *command(VIT, tmp_path / "together", 4)]
    done = subprocess.run(together, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert done.returncode == 0, done.stderr
    assert "2 stages in" in done.stdout
    assert cli.main(command(VIT, tmp_path / "alone", 4)) == 0
    # The keys' biases have gradients that are 0 but for rounding, of which AdamW makes steps.
    assert_same(tmp_path / "alone", tmp_path / "together", tolerance=1e-2)
