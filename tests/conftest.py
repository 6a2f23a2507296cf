"""What several test modules need: a run from a configuration."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is first imported; no test downloads anything

import attrs
import pytest
import torch

from prunekit.config import build_config
from prunekit.engine import run
from prunekit.markers import hookimpl
from prunekit.plugins import Source, make_manager
from prunekit.preparation import prepare
from prunekit.registry import collect
from prunekit.run_folder import RunFolder
from prunekit.testing import ToyTask

TOY = "prunekit.testing:ToyTask"


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and tests do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def toy_run(tmp_path):
    """Return a function that runs the toy task: recipe, plugins -> (finished, prepared, folder)."""

    def go(recipe=None, plugins=(), *, out="run", resume=False):
        config = build_config({"task": {"name": TOY}, "criterion": {"name": "magnitude"}, **(recipe or {})})
        manager = make_manager(third_party=False)
        for number, plugin in enumerate(plugins):
            manager.add(plugin, Source(f"toy-{number}", "tests"))
        prepared = prepare(config, manager, collect(manager), resumed=resume)
        folder = RunFolder(tmp_path / out)
        return run(config, prepared, manager.hook, folder, resume=resume), prepared, folder

    return go


class Watch:
    """A plugin that notes mask updates, and weights and rates as the optimiser sees them; its task is called "watched".

    Attributes:
        events: of mask updates.
        before: stage -> the network's tensors before its first step.
        after: (stage, step) -> the same after a step.
        rates: stage -> learning rate of its first step.
    """

    def __init__(self):
        self.events, self.before, self.after, self.rates = [], {}, {}, {}
        self._stage, self._step = 0, 0
        watch = self

        @attrs.frozen
        class Watched(ToyTask):
            """The toy task, watched."""

            name = "watched"

            def optimizer(self, model):
                optimizer = super().optimizer(model)
                optimizer.register_step_pre_hook(lambda *_: watch._before_step(model, optimizer))
                optimizer.register_step_post_hook(lambda *_: watch._after_step(model))
                return optimizer

        self._task = Watched

    @hookimpl
    def prunekit_tasks(self):
        return [self._task]

    @hookimpl
    def prunekit_stage_started(self, event):
        self._stage, self._step = event.index, event.step

    @hookimpl
    def prunekit_masks_updated(self, event):
        self.events.append(event)

    def _before_step(self, model, optimizer):
        if self._stage not in self.before:
            self.before[self._stage] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self.rates[self._stage] = optimizer.param_groups[0]["lr"]

    def _after_step(self, model):
        self._step += 1
        self.after[self._stage, self._step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def watch():
    """Return a plugin that notes what a run does to the weights."""
    return Watch()
