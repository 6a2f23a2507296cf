"""Overhead of the engine in training: epochs of a real run and of a bare loop of the same model and data, in turns.

The bare loop is dense, sets no rates, reads no losses and tells nobody; arithmetic, memory order, clipping and batches
are those of the run, and everything else in the run counts as its own: events, progress, the metric log.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from measuring import Row
from prunekit_deepid2plus.task import DeepID2Plus
from torch import Tensor, nn

from prunekit import Masks, Seeds, hookimpl
from prunekit.contracts import events
from prunekit.contracts.task import Split
from prunekit.layers.lookup import parameter_name
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import PreparedRun, prepare
from prunekit.runs.recipes import build_config
from prunekit.runs.training.hardware import Hardware
from prunekit.runs.training.optimizers import fuse

DENSITY = 0.1
TARGET = 1.02
MASKED_TARGET = 1.03
RECIPE: Mapping[str, Any] = {
    "criterion": {"name": "magnitude"},
    "schedule": {"name": "one-shot"},
    "density": DENSITY,
}


class PaperNetwork(DeepID2Plus):
    """The network of the paper and its batches, of which the first make an epoch; they are made once."""

    name = "paper-network"
    count: ClassVar = 1  # on a processor a step takes seconds

    def batches(self, split: Split, epoch: int, seeds: Seeds) -> Sequence[tuple[Tensor, Tensor]]:
        """Return the first batches."""
        return self._first

    @cached_property
    def _first(self) -> list[tuple[Tensor, Tensor]]:
        batches = super().batches("train", 0, Seeds(0))
        return [batches[index] for index in range(self.count)]


@attrs.frozen
class Network:
    """What is trained, for how many epochs, and how often anew.

    Where memory happens to lie moves one and the same step by a tenth and more: the best median of fresh models counts.
    """

    task: Mapping[str, Any]
    epochs: int
    rounds: int = 3


NETWORKS: Mapping[str, Network] = {
    "the paper's network, batch 255": Network({"name": f"{__file__}:PaperNetwork", "preset": "paper"}, 4, rounds=1),
    "the embedded default, batch 126": Network({"name": "deepid2plus"}, 5),
    "a small ViT on 8 x 8 digits": Network({"name": "images", "network": "vit"}, 8),
    "a small ResNet on 8 x 8 digits": Network({"name": "images", "network": "resnet"}, 16),
    "LeNet-300-100 on 8 x 8 digits": Network({"name": "images"}, 40),
}


class BareLoop:
    """A minimal training loop for this task."""

    def __init__(self, prepared: PreparedRun, device: str) -> None:
        self.task = prepared.task
        self.settings = prepared.training
        self.hardware = Hardware.of(device, prepared.training)
        model = self.hardware.place(prepared.build_model("initial weights"))
        self.optimizer = self.task.optimizer(model)
        if self.settings.fused:
            fuse(self.optimizer)
        self.scaler = self.hardware.scaler()
        self.model: nn.Module = self.hardware.callable(model).train()

    def epoch(self, batches: Sequence[Any]) -> None:
        """Take one step a batch, and wait for the device."""
        for index in range(len(batches)):
            batch = self.hardware.move(batches[index])
            with self.hardware.autocast():
                loss = self.task.loss(self.model, batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.settings.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        float(loss.detach())


@attrs.define
class Turns:
    """A plugin that takes an epoch of the bare loop after each of the run, and the time of both.

    Attributes:
        bare: the bare loop.
        ours: ms a step, for each epoch of the run.
        theirs: the same of the bare loop.
    """

    bare: BareLoop
    ours: list[float] = attrs.field(factory=list)
    theirs: list[float] = attrs.field(factory=list)
    _since: float = 0.0
    _steps: int = 0

    @hookimpl
    def prunekit_stage_started(self, event: events.StageStarted) -> None:
        """Begin to count."""
        self._since = time.perf_counter()

    @hookimpl(trylast=True)  # the other plugins' part of an epoch is the run's
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Note the time, and let the other one take its epoch."""
        ended = time.perf_counter()
        steps, self._steps = event.step - self._steps, event.step
        self.ours.append((ended - self._since) / steps * 1e3)
        batches = self.bare.task.batches("train", event.epoch, Seeds(0))
        self.bare.epoch(batches)
        self._since = time.perf_counter()
        self.theirs.append((self._since - ended) / len(batches) * 1e3)


def measure(
    task: Mapping[str, Any],
    epochs: int,
    *,
    masked: bool,
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> tuple[float, float]:
    """Return the median ms of a step, of the run and of the bare loop, without their first epoch.

    Args:
        task: what is trained, as in a recipe.
        epochs: of the run.
        masked: whether masks of density 0.1 are held on all layers in the run.
        device: where.
        settings: of the training, of both.
    """
    lengths = {"budget": f"{epochs} epochs", "retraining": f"{epochs} epochs"}
    recipe = {**RECIPE, "task": task, "device": device, "training": {**(settings or {}), **lengths}}
    manager = make_manager()
    prepared = prepare(build_config(recipe), manager, collect(manager))
    turns = Turns(BareLoop(prepared, device))
    manager.add(turns, Source("turns", "benchmarks"))
    with tempfile.TemporaryDirectory() as folder:
        if masked:
            recipe |= {"masks": _random_masks(prepared, Path(folder)), "freeze_masks": True}
        config = build_config(recipe)
        prepared = prepare(config, manager, collect(manager), like=prepared)
        with contextlib.redirect_stderr(io.StringIO()):  # the progress of a run is its work, but no benchmark's output
            run(config, prepared, manager.hook, RunFolder(Path(folder) / "run"), last=1)
    return statistics.median(turns.ours[1:]), statistics.median(turns.theirs[1:])


def _random_masks(prepared: PreparedRun, folder: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    weights = {parameter_name(name, view): view.weight for name, view in prepared.views.items()}
    masks = {name: torch.rand(weight.shape, generator=generator) < DENSITY for name, weight in weights.items()}
    path = folder / "masks.safetensors"
    Masks(masks).save(path)
    return str(path)


def rows() -> Iterator[Row]:
    """Measure all networks, dense and masked."""
    for what, network in NETWORKS.items():
        for masked, target in ((False, TARGET), (True, MASKED_TARGET)):
            rounds = [measure(network.task, network.epochs, masked=masked) for _ in range(network.rounds)]
            ours, theirs = (min(times) for times in zip(*rounds, strict=True))
            yield Row(f"a step of {what}{', masked' if masked else ''}", ours, "bare loop, dense", theirs, target)
