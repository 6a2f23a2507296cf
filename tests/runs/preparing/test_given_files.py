"""Runs that start from given masks and weights."""

import pytest
import torch
from safetensors.torch import load_file

from prunekit.cli import main
from prunekit.contracts.markers import hookimpl
from prunekit.errors import CheckpointError, ConfigError, MaskError
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.weight_files import load_weights, save_weights
from prunekit.runs.config import RunConfig
from prunekit.testing import ToyNetwork

SHORT = {"structure": "hidden=1/4 b=1/2", "training": {"budget": "12 steps", "retraining": "6 steps"}}


class Stopper:
    """Ends the run after a step, as a crash would."""

    def __init__(self, stage, step):
        self.at = (stage, step)

    @hookimpl
    def prunekit_step_finished(self, event):
        if (event.stage, event.step) == self.at:
            raise KeyboardInterrupt


def random_masks(path, **densities):
    network = ToyNetwork()
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            f"module.{layer}.weight": torch.rand(network.get_submodule(layer).weight.shape, generator=generator)
            < density
            for layer, density in densities.items()
        }
    )
    masks.save(path)
    return {name.removeprefix("module."): mask for name, mask in masks.tensors.items()}


def test_a_run_holds_given_masks_from_its_first_stage_and_the_schedule_prunes_further(toy_run, tmp_path):
    given = random_masks(tmp_path / "m", hidden=0.5, conv_a=0.3)
    finished, _, folder = toy_run({**SHORT, "masks": str(tmp_path / "m")})
    kept = {name: int(mask.sum()) for name, mask in given.items()}
    dense, hidden, both = finished.stages
    assert dense.kept["hidden"] == kept["hidden.weight"]
    assert [stage.kept["conv_a"] for stage in finished.stages] == [kept["conv_a.weight"]] * 3
    assert hidden.kept["hidden"] == 288
    assert both.kept["conv_b"] == 144
    masks = load_masks(folder.masks).tensors
    assert torch.equal(masks["conv_a.weight"], given["conv_a.weight"])
    assert not bool((masks["hidden.weight"] & ~given["hidden.weight"]).any())
    assert torch.equal(load_file(folder.model)["hidden.weight"] != 0, masks["hidden.weight"])


def test_frozen_masks_allow_only_retraining_of_given_weights(toy_run, tmp_path):
    given = random_masks(tmp_path / "m", hidden=0.2, conv_b=0.4)
    weights = ToyNetwork().state_dict()
    save_weights(tmp_path / "w", weights)
    settings = {"budget": "50 steps", "retraining": "0 steps", "retraining_rate": 0.5}
    recipe = {"masks": str(tmp_path / "m"), "weights": str(tmp_path / "w"), "freeze_masks": True, "training": settings}
    finished, _, folder = toy_run(recipe)
    assert [stage.name for stage in finished.stages] == ["retrain"]
    assert load_masks(folder.masks) == Masks(given)
    unmoved = load_file(folder.model)
    for name, weight in weights.items():
        assert torch.equal(unmoved[name], weight * given[name] if name in given else weight)
    _, _, trained = toy_run({**recipe, "training": {**settings, "retraining": "5 steps"}}, out="trained")
    assert load_masks(trained.masks) == Masks(given)
    moved = load_file(trained.model)
    assert not torch.equal(moved["hidden.weight"], unmoved["hidden.weight"])
    assert torch.equal(moved["hidden.weight"] != 0, given["hidden.weight"])


@pytest.mark.thorough
@pytest.mark.parametrize("stop", [(0, 1), (0, 7), (1, 2)])
def test_a_resumed_run_does_not_need_the_given_files_and_ends_with_the_same_bytes(toy_run, tmp_path, stop, monkeypatch):
    random_masks(tmp_path / "m", hidden=0.5)
    save_weights(tmp_path / "w", ToyNetwork().state_dict())
    training = {**SHORT["training"], "checkpoint_every": 5}
    recipe = {**SHORT, "training": training, "masks": str(tmp_path / "m"), "weights": str(tmp_path / "w")}
    _, _, whole = toy_run(recipe, out="whole")
    with pytest.raises(KeyboardInterrupt):
        toy_run(recipe, [Stopper(*stop)], out="stopped")
    (tmp_path / "m").unlink()
    (tmp_path / "w").write_bytes(b"another file")
    _, _, resumed = toy_run(recipe, out="stopped", resume=True)
    assert resumed.masks.read_bytes() == whole.masks.read_bytes()
    assert resumed.model.read_bytes() == whole.model.read_bytes()


def test_given_files_that_do_not_fit_are_refused_before_a_folder_is_created(toy_run, tmp_path):
    random_masks(tmp_path / "m", hidden=0.1)
    name = str(tmp_path / "m")
    message = "density of 'hidden' rises from 0.1.* to 0.25, but dropped connections come back only by growth"
    with pytest.raises(ConfigError, match=message):
        toy_run({**SHORT, "masks": name})
    Masks({"hidden.weight": torch.ones(3, 3, dtype=torch.bool)}).save(name)
    with pytest.raises(MaskError, match=r"m: masks do not fit .*'hidden.weight' has a mask of \[3, 3\]"):
        toy_run({**SHORT, "masks": name})
    Masks({"hidden.bias": torch.ones(16, dtype=torch.bool)}).save(name)
    with pytest.raises(MaskError, match=r"m: hidden.bias do not belong to prunable layers"):
        toy_run({**SHORT, "masks": name})
    state = {**ToyNetwork().state_dict(), "more": torch.zeros(1), "conv_a.bias": torch.zeros(2)}
    del state["hidden.bias"]
    save_weights(tmp_path / "w", state)
    with pytest.raises(
        CheckpointError, match=r"hidden.bias is missing, more is not in the network, conv_a.bias is \[2\]"
    ):
        toy_run({**SHORT, "weights": str(tmp_path / "w")})
    with pytest.raises(ConfigError, match="freeze_masks retrains under given masks, but no masks are given"):
        RunConfig(freeze_masks=True)
    assert not (tmp_path / "run").exists()


def test_a_layer_may_be_given_the_density_that_it_already_has(toy_run, tmp_path):
    _, _, first = toy_run({**SHORT, "structure": "hidden=1/3"}, out="first")
    finished, _, second = toy_run({**SHORT, "structure": "hidden=1/3", "masks": str(first.masks)}, out="second")
    assert load_masks(second.masks) == load_masks(first.masks)
    assert len(finished.stages) == 2


def test_a_run_can_write_its_model_sparse(toy_run):
    _, _, dense = toy_run(SHORT, out="dense")
    _, _, sparse = toy_run({**SHORT, "sparse_model": True}, out="sparse")
    assert sparse.model.stat().st_size < dense.model.stat().st_size
    weights = load_file(dense.model)
    loaded = load_weights(sparse.model)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert load_masks(sparse.model) == load_masks(dense.masks)


def test_the_commands_take_masks_and_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", "1")
    random_masks("m", hidden=0.5)
    save_weights("w", ToyNetwork().state_dict())
    toy = ["--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "-o", "training.retraining=2 steps"]
    given = ["--masks", "m", "--weights", "w", "--freeze-masks", "--sparse-model"]
    assert main(["plan", *toy, *given]) == 0
    planned = capsys.readouterr().out
    assert "retrain" in planned
    assert "masks m; weights w" in planned
    assert main(["run", *toy, *given, "--out", "a"]) == 0
    recipe = (tmp_path / "a/config.toml").read_text()
    assert all(
        line in recipe
        for line in (
            f'masks = "{tmp_path}/m"',
            f'weights = "{tmp_path}/w"',
            "freeze_masks = true",
            "sparse_model = true",
        )
    )
    assert main(["run", "a/config.toml", "--out", "b"]) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    (tmp_path / "m").unlink()
    assert main(["run", "--resume", "a"]) == 0
    assert main(["run", *toy, "--masks", "m", "--out", "c"]) == 2
    assert "error: m: no such file" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
