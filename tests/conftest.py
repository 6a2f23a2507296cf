"""What several test modules need: a run from a configuration."""

import os
import subprocess
import sys
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when it is first imported; no test downloads anything

import attrs
import pytest
import torch
from rank import pack, unpack
from torch import nn

from prunekit import testing
from prunekit.contracts.markers import hookimpl
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config
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


@pytest.fixture
def mixed_network():
    """Return a network in double precision: a convolution, a grouped one with stride, two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).double()


@pytest.fixture
def labelled_batches():
    """Return batches of different sizes for it: images of 6 x 6 pixels and labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (size,), generator=generator),
        )
        for size in (5, 3, 4)
    ]


@pytest.fixture
def batch_gradients(mixed_network, labelled_batches):
    """Return the gradients of each batch's mean loss: one dictionary by layer for each batch."""
    found = []
    for batch in labelled_batches:
        mixed_network.zero_grad()
        cross_entropy(mixed_network, batch).backward()
        found.append({name: mixed_network[int(name)].weight.grad.clone() for name in ("0", "2", "5", "7")})
    mixed_network.zero_grad()
    return found


@pytest.fixture
def scores_of():
    """Return ``prunekit.testing.scores_of`` with the cross-entropy as its loss."""
    return partial(testing.scores_of, loss=cross_entropy)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Clock:
    """Seconds that pass only where a test lets them; ``clock(module)`` is the clock of that module from then on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self._monkeypatch = monkeypatch

    def __call__(self, module):
        self._monkeypatch.setattr(module, "time", self)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """Return seconds that do not depend on what else the machine does; see ``Clock``."""
    return Clock(monkeypatch)


class Ranks:
    """Processes with gloo between them; ``run(function, *arguments)`` calls a test module's function on all.

    They stay from test to test, so that Python and torch are not started anew each time. A call returns what each of
    them gave; an error of one is an ``AssertionError`` with its traceback, and the processes start anew.
    """

    patience = 400  # seconds, on a machine however busy; a rank that waits for ever is what tests like these find

    def __init__(self, count, folders):
        self._count, self._folders = count, folders
        self._lines, self._processes = [], []

    def run(self, function, *arguments):
        if not self._lines:
            self._start()
        for line in self._lines:
            line.send_bytes(pack((function.__code__.co_filename, function.__name__, arguments)))
        results = []
        for rank, line in enumerate(self._lines):
            worked, result = self._answer(line)
            results.append(result if worked else f"rank {rank}: {result}")
            if not worked:
                self.stop()
                raise AssertionError("\n".join(map(str, results)))
        return results

    def _answer(self, line):
        try:
            return unpack(line.recv_bytes()) if line.poll(self.patience) else (False, "no answer")
        except EOFError:
            return False, "it has ended"

    def _start(self):
        meeting = self._folders.mktemp("ranks") / "meeting"
        program = [sys.executable, str(Path(__file__).parent / "support" / "rank.py")]
        for rank in range(self._count):
            line, its_end = Pipe()
            command = [*program, str(rank), str(self._count), str(meeting), str(its_end.fileno())]
            self._processes.append(subprocess.Popen(command, pass_fds=[its_end.fileno()]))  # noqa: S603 - our own program
            its_end.close()
            self._lines.append(line)

    def stop(self):
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._lines, self._processes = [], []


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """Return two processes with gloo between them; see ``Ranks``."""
    ranks = Ranks(2, tmp_path_factory)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    """Return three of them."""
    ranks = Ranks(3, tmp_path_factory)
    yield ranks
    ranks.stop()
