import json
import re

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prunekit.cli.run_table import print_result
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.markers import hookimpl
from prunekit.errors import CheckpointError, DataError, NotFiniteError, PluginError, TrainingError
from prunekit.layers.lookup import parameter_name
from prunekit.masks.masks import load_masks
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config
from prunekit.runs.stages.losses import LossReader
from prunekit.testing import ToyNetwork, ToyTask

RECIPE = {
    "structure": "hidden=1/4 b=1/2",
    "criterion": {"name": "correlation"},
    "training": {"budget": "25 steps", "retraining": "15 steps", "checkpoint_every": 4, "precision": "bf16"},
}


class Stopper:
    """Ends the run after some steps, as a crash would."""

    def __init__(self, stage, step):
        self.at = (stage, step)

    @hookimpl
    def prunekit_step_finished(self, event):
        if (event.stage, event.step) == self.at:
            raise KeyboardInterrupt


class Spoiler:
    """Fails when notified of the masks of a step."""

    def __init__(self, step):
        self.step = step

    @hookimpl
    def prunekit_masks_updated(self, event):
        if event.step == self.step:
            raise KeyboardInterrupt


class Hopeless:
    """Fails when notified that the run has stopped."""

    @hookimpl
    def prunekit_run_stopped(self, event):
        raise ZeroDivisionError("a bug")


class Dropout(ToyNetwork):
    """Draws from torch's global generator in training, as dropout does."""

    def forward(self, images):
        return torch.nn.functional.dropout(super().forward(images), 0.2, self.training)


@attrs.frozen
class DropoutTask(ToyTask):
    """The toy task with dropout and an optimiser with state of two kinds."""

    name = "dropout"

    def build_model(self):
        return Dropout(self.classes)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


@attrs.frozen
class ExplodingTask(ToyTask):
    """The toy task with an infinite loss as soon as a layer is pruned."""

    name = "exploding"

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss / 0.0 if bool((model.hidden.weight == 0).any()) else loss


class Tasks:
    @hookimpl
    def prunekit_tasks(self):
        return [DropoutTask, ExplodingTask]


def metrics_of(folder):
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_same_command_twice_gives_the_same_bytes(toy_run):
    _, _, first = toy_run(RECIPE, out="first")
    _, _, second = toy_run(RECIPE, out="second")
    assert first.masks.read_bytes() == second.masks.read_bytes()
    assert first.model.read_bytes() == second.model.read_bytes()
    assert metrics_of(first) == metrics_of(second)


def test_another_seed_gives_other_weights(toy_run):
    _, _, first = toy_run(RECIPE, out="first")
    _, _, second = toy_run({**RECIPE, "seed": 1}, out="second")
    assert first.model.read_bytes() != second.model.read_bytes()


def ends_alike(toy_run, recipe, stop):
    """Run a recipe once without a stop and once stopped and resumed; compare all bytes."""
    _, _, whole = toy_run(recipe, [Tasks()], out="whole")
    stopper = Stopper(*stop) if isinstance(stop, tuple) else stop
    with pytest.raises(KeyboardInterrupt):
        toy_run(recipe, [Tasks(), stopper], out="stopped")
    finished, _, resumed = toy_run(recipe, [Tasks()], out="stopped", resume=True)
    assert resumed.masks.read_bytes() == whole.masks.read_bytes()
    assert resumed.model.read_bytes() == whole.model.read_bytes()
    assert metrics_of(resumed) == metrics_of(whole)
    return finished


@pytest.mark.parametrize("stop", [(0, 3), (0, 4), (0, 19), (1, 1), (1, 4), (2, 14)])
def test_a_stopped_and_resumed_run_ends_with_the_same_bytes(toy_run, stop):
    recipe = {**RECIPE, "task": {"name": "dropout"}}
    finished = ends_alike(toy_run, recipe, stop)
    assert [stage.name for stage in finished.stages] == ["dense", "hidden", "conv_b"]


@pytest.mark.parametrize(
    ("schedule", "stop"),
    [
        ({"name": "gradual", "updates": 6}, (0, 13)),
        ({"name": "one-shot", "when": "before", "rounds": 3}, (0, 9)),
        ({"name": "iterative", "rounds": 2}, (2, 6)),
        ({"name": "iterative", "rounds": 2, "rewind": "step", "step": 5}, (1, 9)),
        ({"name": "set", "updates": 6}, (0, 14)),
        ({"name": "rigl", "updates": 6}, (0, 8)),
        ({"name": "ac-dc", "phases": 3}, (0, 13)),
        ({"name": "dense-sparse-dense"}, (2, 5)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_schedule_resumes_from_the_middle_to_the_same_bytes(toy_run, schedule, stop):
    recipe = {**RECIPE, "task": {"name": "dropout"}, "criterion": {"name": "magnitude"}, "schedule": schedule}
    ends_alike(toy_run, recipe, stop)


def test_masks_that_changed_before_a_plugin_failed_are_not_saved_with_the_earlier_steps(toy_run):
    recipe = {**RECIPE, "task": {"name": "dropout"}, "schedule": {"name": "gradual", "updates": 4}}
    steps = [line["step"] for line in metrics_of(toy_run(recipe, [Tasks()], out="steps")[2]) if "layers" in line]
    ends_alike(toy_run, recipe, Spoiler(steps[2]))


@pytest.mark.parametrize(("schedule", "stop"), [("gradual", (0, 14)), ("layerwise", (1, 6)), ("layerwise", (2, 1))])
def test_sums_over_training_steps_are_resumed_to_the_same_bytes(toy_run, schedule, stop):
    recipe = {**RECIPE, "task": {"name": "dropout"}, "criterion": {"name": "movement"}, "schedule": {"name": schedule}}
    ends_alike(toy_run, recipe, stop)


def test_the_error_that_stops_a_run_is_reported_even_if_a_plugin_fails_on_it(toy_run):
    with pytest.raises(KeyboardInterrupt) as raised:
        toy_run(RECIPE, [Stopper(0, 5), Hopeless()])
    assert re.fullmatch(
        "a plugin failed when notified of this error: plugin 'toy-1' of package 'tests' failed in prunekit_run_stopped "
        r"\(test_runs.py:\d+\): ZeroDivisionError: a bug; disable it with --no-plugin toy-1",
        raised.value.__notes__[-1],
    )


def test_a_run_that_a_listener_ends_resumes_without_it(toy_run):
    class Broken:
        @hookimpl
        def prunekit_masks_updated(self, event):
            raise ZeroDivisionError("a bug")

    with pytest.raises(PluginError, match="disable it with --no-plugin toy-0") as raised:
        toy_run(RECIPE, [Broken()])
    assert raised.value.__notes__[-1].endswith("--no-plugin toy-0")


def test_resuming_a_finished_run_trains_nothing_and_prints_its_table(toy_run, capsys):
    finished, _, folder = toy_run(RECIPE)
    before = folder.model.read_bytes()
    again, _, _ = toy_run(RECIPE, resume=True)
    assert again.stages == finished.stages
    assert folder.model.read_bytes() == before
    print_result(again)
    assert "conv_b" in capsys.readouterr().out


def test_a_checkpoint_of_another_network_is_refused(toy_run):
    toy_run(RECIPE)
    with pytest.raises(CheckpointError, match="does not fit the run"):
        toy_run({**RECIPE, "task": {"name": "prunekit.testing:ToyTask", "classes": 5}}, resume=True)


def test_an_infinite_loss_names_stage_step_and_rate_and_the_run_resumes_from_its_checkpoint(toy_run):
    message = "the loss is inf at step 1 of 15 in stage 'hidden', learning rate 0.05;"
    with pytest.raises(TrainingError, match=message):
        toy_run({**RECIPE, "task": {"name": "exploding"}}, [Tasks()])
    finished, _, _ = toy_run(RECIPE, resume=True)
    assert len(finished.stages) == 3


@pytest.mark.parametrize("task", ["prunekit.testing:ToyTask", "dropout"])
def test_dropped_weights_are_zero_after_every_step(toy_run, task):
    class Watcher:
        """Records the zeros after the first step of each stage and checks them after every later step."""

        def __init__(self):
            self.looks = 0
            self.zeros = {}

        @hookimpl
        def prunekit_stage_started(self, event):
            self.zeros = {}

        @hookimpl
        def prunekit_step_finished(self, event):
            for name in names[event.stage]:
                weight = built[-1].get_parameter(name).detach()
                zeros = self.zeros.setdefault(name, weight == 0)
                assert torch.equal(weight == 0, zeros)
                assert int((~zeros).sum()) == {"hidden.weight": 288, "conv_b.weight": 144}[name]
                self.looks += 1

    names = [[], ["hidden.weight"], ["hidden.weight", "conv_b.weight"]]
    built = []

    class Catcher:
        """Catches the network that is trained."""

        @hookimpl
        def prunekit_layer_views(self, module):
            if isinstance(module, ToyNetwork):
                built.append(module)

    watcher = Watcher()
    _, prepared, folder = toy_run({**RECIPE, "task": {"name": task}}, [Tasks(), watcher, Catcher()])
    assert watcher.looks == 15 + 2 * 15
    masks = load_masks(folder.masks)
    saved = load_file(folder.model)
    for name, view in prepared.views.items():
        key = parameter_name(name, view)
        if key in masks.tensors:
            assert torch.equal(saved[key] != 0, masks.tensors[key])


def test_the_run_folder_says_how_to_repeat_the_run(toy_run):
    _, _, folder = toy_run(RECIPE)
    environment = json.loads(folder.environment.read_text())
    assert environment["seed"] == 0
    assert environment["versions"]["torch"] == torch.__version__
    plan = json.loads(folder.plan.read_text())
    assert [stage["name"] for stage in plan["stages"]] == ["dense", "hidden", "conv_b"]
    info = load_masks(folder.masks).info
    assert info["criterion"] == "correlation"
    assert info["requested"] == {"conv_b.weight": 0.5, "hidden.weight": 0.25}


def test_statistics_use_evaluation_mode_and_leave_no_hook_behind(toy_run):
    _, prepared, _ = toy_run({**RECIPE, "task": {"name": "dropout"}}, [Tasks()])
    assert all(not module._forward_hooks for module in prepared.network.modules())
    assert all(not parameter._post_accumulate_grad_hooks for parameter in prepared.network.parameters())


class Tied(ToyNetwork):
    """Two layers that share one weight."""

    def __init__(self, classes=4):
        super().__init__(classes)
        self.more = torch.nn.Linear(16, 16)
        self.again = torch.nn.Linear(16, 16)
        self.again.weight = self.more.weight

    def forward(self, images):
        maps = self.relu_b(self.conv_b(self.relu_a(self.conv_a(images))))
        hidden = self.relu_hidden(self.hidden(maps.flatten(1)))
        return self.classifier(self.again(self.more(hidden).relu()).relu())


@attrs.frozen
class TiedTask(ToyTask):
    """The toy task with tied weights."""

    name = "tied"

    def build_model(self):
        return Tied(self.classes)


@attrs.frozen
class WildTask(ToyTask):
    """The toy task at a rate that diverges within one step."""

    name = "wild"

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=1e38, momentum=0.9, weight_decay=1e-2)


class Buffered(ToyNetwork):
    """Has an infinite buffer, as attention has, and one that is NaN from some step on."""

    def __init__(self, spoilt_at):
        super().__init__()
        self.register_buffer("mask", torch.full((2,), -torch.inf))
        self.register_buffer("mean", torch.zeros(()))
        self.left = spoilt_at

    def forward(self, images):
        self.left -= self.training
        if self.left == 0:
            self.mean += torch.nan
        return super().forward(images)


@attrs.frozen
class BufferedTask(ToyTask):
    """The toy task with such a network."""

    name = "buffered"
    spoilt_at: int = -1

    def build_model(self):
        return Buffered(self.spoilt_at)


@attrs.frozen
class RoughTask(ToyTask):
    """The toy task with figures that are scalars of NumPy and torch."""

    name = "rough"

    def evaluate(self, model, device):
        return Evaluation("accuracy", {"accuracy": np.float32(0.5), "loss": torch.tensor(0.25)})


class MoreTasks:
    @hookimpl
    def prunekit_tasks(self):
        return [TiedTask, WildTask, RoughTask, BufferedTask]


def test_buffers_may_be_infinite_but_not_nan(toy_run):
    assert len(toy_run({**RECIPE, "task": {"name": "buffered"}}, [MoreTasks()])[0].stages) == 3
    with pytest.raises(NotFiniteError, match="after step 4 of stage 'dense', 'mean' contains NaN or infinite values"):
        toy_run({**RECIPE, "task": {"name": "buffered", "spoilt_at": 3}}, [MoreTasks()], out="spoilt")


def test_figures_may_be_scalars_of_numpy_and_torch(toy_run):
    recipe = {**RECIPE, "task": {"name": "rough"}}
    toy_run(recipe, [MoreTasks()])
    finished, _, folder = toy_run(recipe, [MoreTasks()], resume=True)
    assert finished.stages[-1].evaluation == Evaluation("accuracy", {"accuracy": 0.5, "loss": 0.25})
    assert metrics_of(folder)[-1]["evaluation"]["metrics"] == {"accuracy": 0.5, "loss": 0.25}


def test_tied_weights_are_one_weight_in_run_masks_model_and_resume(toy_run):
    recipe = {**RECIPE, "task": {"name": "tied"}, "structure": "more=1/4"}
    _, prepared, folder = toy_run(recipe, [MoreTasks()])
    mask = load_masks(folder.masks).tensors["more.weight"]
    saved = load_file(folder.model)
    assert torch.equal(saved["more.weight"], saved["again.weight"])
    assert not saved["more.weight"][~mask].any()
    assert prepared.network.again.weight is prepared.network.more.weight
    assert len(toy_run(recipe, [MoreTasks()], resume=True)[0].stages) == 2


def test_diverged_weights_are_neither_saved_nor_evaluated(toy_run, tmp_path):
    training = {"budget": "3 steps", "retraining": "3 steps", "check_every": 1}
    with pytest.raises(TrainingError, match=r"(NaN or infinite|the loss is (nan|inf))"):
        toy_run({**RECIPE, "task": {"name": "wild"}, "training": training}, [MoreTasks()])
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_error_before_the_first_step_does_not_touch_an_earlier_run(toy_run):
    _, prepared, folder = toy_run(RECIPE)
    before = folder.model.read_bytes()
    wrong = attrs.evolve(prepared, training=attrs.evolve(prepared.training, accumulate=1000))
    with pytest.raises(DataError, match=r"10 training batches, but one step needs training\.accumulate=1000"):
        run(
            build_config({"task": {"name": "prunekit.testing:ToyTask"}}), wrong, make_manager().hook, folder, force=True
        )
    assert folder.model.read_bytes() == before
    assert any(folder.checkpoints.iterdir())


def test_a_run_that_continues_another_gives_the_bytes_of_a_run_on_its_own(toy_run, tmp_path):
    recipe = {**RECIPE, "task": {"name": "dropout"}}
    whole, _, alone = toy_run(recipe, [Tasks()], out="whole")
    for last in (1, 2):
        config = build_config({**recipe, "out": None})
        manager = make_manager(third_party=False)
        manager.add(Tasks(), Source("tasks", "tests"))
        prepared = prepare(config, manager, collect(manager))
        source = RunFolder(tmp_path / "part-1") if last > 1 else None
        run(config, prepared, manager.hook, RunFolder(tmp_path / f"part-{last}"), source=source, last=last)
    finished, _, part = toy_run(recipe, [Tasks()], out="part-2", resume=True)
    assert part.model.read_bytes() == alone.model.read_bytes()
    assert part.masks.read_bytes() == alone.masks.read_bytes()
    assert metrics_of(part) == metrics_of(alone)
    assert [stage.evaluation for stage in finished.stages] == [stage.evaluation for stage in whole.stages]


def test_the_dense_control_trains_through_the_same_stages_and_prunes_nothing(toy_run):
    pruned, _, _ = toy_run(RECIPE, out="pruned")
    control, _, folder = toy_run({**RECIPE, "dense": True}, out="control")
    assert [stage.name for stage in control.stages] == [stage.name for stage in pruned.stages]
    assert control.stages[0].evaluation == pruned.stages[0].evaluation
    assert {stage.weights_left for stage in control.stages} == {1.0}
    assert not folder.masks.exists()


def test_training_from_scratch_begins_at_the_full_rate_under_the_final_masks(toy_run):
    class Rates:
        """Notes the learning rate at the end of each epoch."""

        def __init__(self):
            self.of_stage = {}

        @hookimpl
        def prunekit_epoch_finished(self, event):
            self.of_stage.setdefault(event.stage, event.learning_rate)

    rates = Rates()
    recipe = {**RECIPE, "schedule": {"name": "layerwise", "scratch": "same"}}
    recipe["training"] = {"budget": "1 epochs", "retraining": "1 epochs", "decay": "constant", "retraining_rate": 0.1}
    finished, _, folder = toy_run(recipe, [rates])
    assert [stage.name for stage in finished.stages] == [
        "dense",
        "hidden",
        "conv_b",
        "scratch 0",
        "scratch 1",
        "scratch 2",
    ]
    assert list(rates.of_stage.values()) == pytest.approx([0.05, 0.005, 0.005, 0.05, 0.005, 0.005])
    saved, masks = load_file(folder.model), load_masks(folder.masks).tensors
    assert all(torch.equal(saved[name] != 0, mask) for name, mask in masks.items())
    assert finished.stages[-1].kept == finished.stages[2].kept


SETTINGS = {
    "channels-last": {"channels_last": True},
    "channels-last, fused": {"channels_last": True, "fused": True},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "workers": {"workers": 2, "accumulate": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_run_resumes_to_the_same_bytes_with_every_setting(toy_run, settings):
    training = {"budget": "25 steps", "retraining": "5 steps", "checkpoint_every": 7, **settings}
    recipe = {"density": 0.3, "schedule": {"name": "gradual"}, "training": training}
    _, whole, _ = toy_run(recipe, out="whole")
    with pytest.raises(KeyboardInterrupt):
        toy_run(recipe, [Stopper(0, 17)])
    _, resumed, _ = toy_run(recipe, resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_losses_are_read_as_often_as_requested(toy_run, monkeypatch):
    reads = []
    read = LossReader.read
    monkeypatch.setattr(LossReader, "read", lambda self, step: (reads.append(step), read(self, step)))
    training = {"budget": "20 steps", "check_every": 4}
    toy_run({"density": 0.3, "schedule": {"name": "gradual"}, "training": training})
    assert reads == [4, 8, 10, 14, 18, 20]  # and at the end of an epoch of ten steps


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_a_model_is_compiled_once_for_all_stages_and_masks(toy_run):
    dynamo = pytest.importorskip("torch._dynamo")
    dynamo.reset()
    dynamo.utils.counters.clear()  # a reset does not clear them
    recipe = {
        "density": 0.3,
        "schedule": {"name": "iterative", "rounds": 3},
        "training": {"budget": "6 steps", "retraining": "4 steps"},
    }
    _, plain, folder = toy_run(recipe, out="plain")
    recipe["training"]["compile"] = True
    with dynamo.config.patch(error_on_recompile=True):
        _, compiled, other = toy_run(recipe, out="compiled")
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert load_file(folder.model).keys() == load_file(other.model).keys()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
