"""Runs that prune whole channels: masks are held, saved, resumed, given to another run; networks are shrunk."""

import json

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunekit.contracts.export_format import PrunedNetwork
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.seeds import Seeds
from prunekit.deployment.export.writing import export
from prunekit.deployment.shrinking import shrink
from prunekit.errors import ConfigError, MaskError
from prunekit.masks.masks import Masks, load_masks
from prunekit.runs.preparing.task_samples import task_samples
from prunekit.testing.toy_task import ToyTask

RECIPE = {
    "task": {"name": "adding"},
    "schedule": {"name": "one-shot"},
    "density": 0.5,
    "pattern": "channels",
    "training": {"budget": "12 steps", "retraining": "8 steps", "checkpoint_every": 3},
}
NORMED = ("stem.bias", "norm.weight", "norm.bias", "outer_norm.weight", "outer_norm.bias")


class Adding(nn.Module):
    """A residual network: it adds the stem and the outer layer, each after batch normalisation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 4)

    def forward(self, images):
        values = self.norm(self.stem(images)).relu()
        values = (values + self.outer_norm(self.outer(self.inner(values).relu()))).relu()
        return self.classifier(values.mean((2, 3)))


@attrs.frozen
class AddingTask(ToyTask):
    name = "adding"
    structure = "*=0.5"

    def build_model(self):
        return Adding()

    def activations(self, network):
        return {}

    def optimizer(self, model):
        # Weight decay and momentum for all parameters, as in many training loops.
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


class Tasks:
    """Brings the task, and ends the run after a step, as a crash would."""

    def __init__(self, *stop):
        self.stop = stop

    @hookimpl
    def prunekit_tasks(self):
        return [AddingTask]

    @hookimpl
    def prunekit_step_finished(self, event):
        if (event.stage, event.step) == self.stop:
            raise KeyboardInterrupt


def opened(prepared, folder):
    network = Adding().eval().requires_grad_(requires_grad=False)
    network.load_state_dict(load_file(folder.model))
    samples = task_samples(prepared.task, network, Seeds(0))
    return PrunedNetwork(network, load_masks(folder.masks), prepared.views, samples, "run")


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "movement", "random"])
@pytest.mark.parametrize("schedule", [{"name": "layerwise"}, {"name": "gradual", "updates": 3}, {"name": "iterative"}])
def test_half_the_channels_are_removed_from_a_run_and_its_export(toy_run, tmp_path, criterion, schedule):
    recipe = {**RECIPE, "criterion": {"name": criterion}, "schedule": schedule}
    finished, prepared, folder = toy_run(recipe, [Tasks()])
    assert finished.stages[-1].kept == {"stem": 36, "inner": 432, "outer": 432, "classifier": 32}
    masks = load_masks(folder.masks).tensors
    kept = masks["stem.weight"].flatten(1).all(1)
    assert int(kept.sum()) == 4
    assert torch.equal(masks["outer.weight"].flatten(1).all(1), kept)
    assert all(torch.equal(masks[name], kept) for name in NORMED)
    assert "classifier.weight" not in masks
    weights = load_file(folder.model)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    pruned = opened(prepared, folder)
    report = shrink(pruned.network, pruned.samples, pruned.masks).report
    assert {name: sizes.units for name, sizes in report.layers.items()} == {
        "stem": (8, 4),
        "inner": (12, 6),
        "outer": (8, 4),
        "classifier": (4, 4),
    }
    assert report.weights == (8 * 9 + 2 * 96 * 9 + 32, 4 * 9 + 2 * 24 * 9 + 16)
    written = export(pruned, "shrunk", tmp_path / "small.safetensors")
    assert written.error < 1e-5


@pytest.mark.parametrize("stop", [(0, 4), (1, 2), (1, 5)])
@pytest.mark.parametrize("schedule", [{"name": "layerwise"}, {"name": "iterative", "rounds": 2, "rewind": "step"}])
def test_a_resumed_run_ends_with_the_same_bytes(toy_run, schedule, stop):
    recipe = {**RECIPE, "schedule": {**schedule, "step": 5} if "rewind" in schedule else schedule}
    _, _, whole = toy_run(recipe, [Tasks()], out="whole")
    with pytest.raises(KeyboardInterrupt):
        toy_run(recipe, [Tasks(*stop)], out="stopped")
    _, _, resumed = toy_run(recipe, [Tasks()], out="stopped", resume=True)
    assert resumed.masks.read_bytes() == whole.masks.read_bytes()
    assert resumed.model.read_bytes() == whole.model.read_bytes()


def test_weights_that_follow_a_removed_channel_are_zero_after_every_step(toy_run, watch):
    class Watched(watch._task):
        name = "watched"

        def build_model(self):
            return Adding()

        def activations(self, network):
            return {}

    watch._task = Watched
    _, _, folder = toy_run({**RECIPE, "task": {"name": "watched"}}, [watch])
    masks = load_masks(folder.masks).tensors
    steps = [tensors for (stage, _), tensors in watch.after.items() if stage == 1]
    assert len(steps) == 8
    for tensors in steps:
        for name in NORMED:
            assert bool((tensors[name][~masks[name]] == 0).all())
            assert bool((tensors[name][masks[name]] != 0).all())


def test_a_run_that_only_retrains_accepts_the_masks_of_another_run(toy_run, tmp_path):
    _, _, folder = toy_run(RECIPE, [Tasks()])
    given = {"masks": str(folder.masks), "weights": str(folder.model), "freeze_masks": True}
    _, _, again = toy_run({**RECIPE, **given}, [Tasks()], out="again")
    assert load_masks(again.masks) == load_masks(folder.masks)
    weights = load_file(again.model)
    assert not torch.equal(weights["norm.bias"], load_file(folder.model)["norm.bias"])
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in load_masks(folder.masks).tensors.items())
    with pytest.raises(MaskError, match="not belong to prunable layers; remove their masks, or use --pattern channels"):
        toy_run({**RECIPE, **given, "pattern": None}, [Tasks()], out="units")
    changed = dict(load_masks(folder.masks).tensors)
    changed["norm.bias"] = ~changed["norm.bias"]
    Masks(changed).save(tmp_path / "changed")
    with pytest.raises(MaskError, match=r"masks of norm.bias do not match the removed channels"):
        toy_run({**RECIPE, **given, "masks": str(tmp_path / "changed")}, [Tasks()], out="changed")


def test_the_plan_names_joined_layers_and_layers_that_keep_all_channels(toy_run):
    _, prepared, folder = toy_run({**RECIPE, "schedule": {"name": "layerwise"}}, [Tasks()])
    assert [stage.name for stage in prepared.plan.stages] == ["dense", "stem+1", "inner"]
    assert prepared.plan.stages[1].updates[0].targets == {"stem": 0.5, "outer": 0.5}
    assert "no channel of classifier can be removed (it is an output of the network)" in prepared.headline
    stage = json.loads(folder.plan.read_text())["stages"][1]
    assert (stage["name"], stage["updates"][0]["pattern"]) == ("stem+1", "channels")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": {"name": "dense-sparse-dense"}}, "all connections come back, but the normalisation of"),
        ({"schedule": {"name": "rigl"}}, "growth works on single layers without a pattern"),
        ({"scope": "unit"}, "channels compete only within the layers that share them, not with scope 'unit'"),
        ({"density": None, "structure": "stem=0.5 inner=0.5"}, "but got stem=0.5 outer=1"),
        ({"density": None, "structure": "classifier=0.5"}, "no channel of the requested layers can be removed"),
        ({"keep_dense": ["stem"]}, "but got stem=1 outer="),
        ({"criterion": {"name": "sparsegpt"}}, "cannot keep the pattern channels"),
        ({"density": 0.01}, "keeps none of its"),
    ],
)
def test_an_impossible_request_is_refused_before_a_folder_is_created(toy_run, tmp_path, change, words):
    recipe = {key: value for key, value in {**RECIPE, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=words):
        toy_run(recipe, [Tasks()])
    assert not (tmp_path / "run").exists()
