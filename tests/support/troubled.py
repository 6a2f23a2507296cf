"""A task to which something happens, once: what the file "trouble" in the working folder says.

"loss 7 SIGTERM": at the seventh loss from now, SIGTERM. The count is kept in the file, so data workers share it. Of
several ranks each has a file of its own: "trouble-1".
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import nn

from prunekit.files.atomic import write_atomically
from prunekit.testing.toy_task import ToyImages, ToyNetwork, ToyTask


class DropoutNetwork(ToyNetwork):
    """Draws from torch's global generator in training."""

    def forward(self, images):
        return nn.functional.dropout(super().forward(images), 0.2, self.training)


class NormNetwork(DropoutNetwork):
    """Has running statistics, too."""

    def __init__(self, classes=4):
        super().__init__(classes)
        self.relu_a = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())


class CountingNetwork(DropoutNetwork):
    """Has a buffer that is replaced by a new one in every training step."""

    def __init__(self, classes=4):
        super().__init__(classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls = self.calls + float(self.training)
        return super().forward(images) + 1e-3 * self.calls


@attrs.frozen
class Images(ToyImages):
    """Batches, to which something happens."""

    def __getitem__(self, index):
        happen("batch")
        return super().__getitem__(index)


@attrs.frozen
class Troubled(ToyTask):
    """The toy task in trouble."""

    name = "troubled"
    norm: bool = False
    counts: bool = False
    draws: bool = False
    """Whether the loss draws from NumPy's global generator."""

    def build_model(self):
        network = NormNetwork if self.norm else CountingNetwork if self.counts else DropoutNetwork
        return network(self.classes)

    def batches(self, split, epoch, seeds):
        return Images(split, epoch, seeds, self.classes, self.noise)

    def forward(self, model, batch):
        happen("statistics")
        return super().forward(model, batch)

    def loss(self, model, batch):
        if batch[0].device.type != "meta":
            batch = (batch[0] * (happen("loss") or 1), batch[1])
            batch[0].add_(np.random.standard_normal() if self.draws else 0.0)  # noqa: NPY002
            loss = super().loss(model, batch)
            happen("forward")
            return loss
        return super().loss(model, batch)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def evaluate(self, model, device):
        happen("evaluation")
        return super().evaluate(model, device)


def happen(where):
    path = Path("-".join(["trouble", *filter(None, [os.environ.get("RANK")])]))
    try:
        place, left, what = path.read_text().split()
    except FileNotFoundError:  # it has already happened, perhaps just now in another process
        return None
    if place != where:
        return None
    if int(left) > 1:
        write_atomically(path, f"{place} {int(left) - 1} {what}".encode())  # several processes read it
        return None
    if not what.startswith("always-"):
        path.unlink()
    return _ACTS[what.removeprefix("always-")]()


def _make_read_only():
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "disk/run/checkpoints"], check=True)  # noqa: S607


def _send(*signals):
    for number in signals:
        os.kill(os.getpid(), number)
        time.sleep(0.6)  # two signals, not one that is delivered twice


def _raise(error):
    raise error


def _fill():
    with Path("disk/filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def _end_all():
    """Send SIGTERM to the run and to its data workers; this may be any of them."""
    run = os.getppid() if multiprocessing.parent_process() else os.getpid()
    children = Path(f"/proc/{run}/task/{run}/children").read_text().split()
    command = Path(f"/proc/{run}/cmdline").read_bytes()
    for number in [run, *map(int, children)]:
        # Data workers are forks of the run. The ranks that other tests keep waiting are children of it, too.
        if Path(f"/proc/{number}/cmdline").read_bytes() == command:
            os.kill(number, signal.SIGTERM)
    time.sleep(0.2)


def _end_launcher():
    """Send SIGTERM to the parent process, and wait until it has passed the signal on."""
    passed_on, handler = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *arguments: (passed_on.append(True), handler(*arguments)))
    os.kill(os.getppid(), signal.SIGTERM)
    while not passed_on:
        time.sleep(0.01)


_ACTS = {
    "SIGTERM": lambda: _send(signal.SIGTERM),
    "SIGINT": lambda: _send(signal.SIGINT),
    "twice": lambda: _send(signal.SIGINT, signal.SIGINT),
    "all": _end_all,
    "launcher": _end_launcher,
    "SIGKILL": lambda: (time.sleep(1), _send(signal.SIGKILL)),  # lets ranks that lag behind catch up
    "memory": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")),
    "bug": lambda: _raise(ZeroDivisionError("a bug")),
    "nan": lambda: float("nan"),
    "vanish": lambda: shutil.rmtree("run"),
    "fill": _fill,
    "readonly": _make_read_only,
}
