"""What the engine adds to training: epochs of a real run and of a bare loop of the same model and data, in turns.

The bare loop is dense, sets no rates, reads no losses and tells nobody; arithmetic, memory order, clipping and batches
are those of the run. ``python benchmarks/loop_overhead.py --help`` says how to measure other networks and devices.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from measuring import Row
from torch import nn

from prunekit import Masks, events, hookimpl
from prunekit.engine import run
from prunekit.finding import parameter_name
from prunekit.hardware import Hardware
from prunekit.plugins import Source, make_manager
from prunekit.preparation import Prepared, prepare
from prunekit.recipes import build_config
from prunekit.registry import collect
from prunekit.run_folder import RunFolder
from prunekit.seeds import Seeds
from prunekit.tasks import Split
from prunekit_deepid2plus.task import DeepID2Plus

DENSITY = 0.1
TARGET = 1.02
MASKED_TARGET = 1.03
# Where memory happens to lie moves one and the same step by a tenth and more: best median of fresh models.
ROUNDS = 3
_RECIPE = {"criterion": {"name": "magnitude"}, "schedule": {"name": "one-shot"}, "density": DENSITY}
NETWORKS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "toy": ({"task": {"name": "prunekit.testing:ToyTask"}}, 60),
    "lenet": ({"task": {"name": "images"}}, 8),
    "resnet": ({"task": {"name": "images", "network": "resnet"}}, 4),
    "vit": ({"task": {"name": "images", "network": "vit"}}, 4),
    "tiny": ({"task": {"name": "deepid2plus"}}, 6),
    "paper": ({"task": {"name": f"{__file__}:PaperNetwork", "preset": "paper"}}, 5),
}


class PaperNetwork(DeepID2Plus):
    """The network of the paper with its batches, one in an epoch: that takes long enough."""

    name = "paper-network"

    def batches(self, split, epoch, seeds):
        batches = super().batches(split, epoch, seeds)
        return [batches[0]]


class BareLoop:
    """What a person would write for this task, and no more."""

    def __init__(self, prepared: Prepared, device: str) -> None:
        self.task = prepared.task
        self.settings = prepared.training
        self.hardware = Hardware.of(device, prepared.training)
        model = self.hardware.place(prepared.build_model("initial weights"))
        self.optimizer = self.task.optimizer(model)
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

    @hookimpl(trylast=True)  # the other plugins' part of an epoch is ours
    def prunekit_epoch_finished(self, event: events.EpochFinished) -> None:
        """Note the time, and let the other one take its epoch."""
        ended = time.perf_counter()
        steps, self._steps = event.step - self._steps, event.step
        self.ours.append((ended - self._since) / steps * 1e3)
        batches = self.bare.task.batches("train", event.epoch, Seeds(0))
        self.bare.epoch(batches)
        self._since = time.perf_counter()
        self.theirs.append((self._since - ended) / len(batches) * 1e3)


def measure(recipe: Mapping[str, Any], epochs: int, *, masked: bool, device: str = "cpu") -> tuple[float, float]:
    """Return the median ms of a step, of the run and of the bare loop, without their first epoch.

    Args:
        recipe: what is trained.
        epochs: of the run.
        masked: whether masks of density 0.1 are held on all layers in the run.
        device: where.
    """
    lengths = {"budget": f"{epochs} epochs", "retraining": f"{epochs} epochs"}
    recipe = {**_RECIPE, **recipe, "device": device, "training": {**recipe.get("training", {}), **lengths}}
    manager = make_manager()
    prepared = prepare(build_config(recipe), manager, collect(manager))
    turns = Turns(BareLoop(prepared, device))
    manager.add(turns, Source("turns", "benchmarks"))
    with tempfile.TemporaryDirectory() as folder:
        if masked:
            recipe |= {"masks": _random_masks(prepared, Path(folder)), "freeze_masks": True}
        config = build_config(recipe)
        prepared = prepare(config, manager, collect(manager), like=prepared)
        run(config, prepared, manager.hook, RunFolder(Path(folder) / "run"), last=1)
    return statistics.median(turns.ours[1:]), statistics.median(turns.theirs[1:])


def _random_masks(prepared: Prepared, folder: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    weights = {parameter_name(name, view): view.weight for name, view in prepared.views.items()}
    masks = {name: torch.rand(weight.shape, generator=generator) < DENSITY for name, weight in weights.items()}
    path = folder / "masks.safetensors"
    Masks(masks).save(path)
    return str(path)


def rows() -> Iterator[Row]:
    """Measure all networks, dense and masked."""
    for what, (recipe, epochs) in NETWORKS.items():
        for masked, target in ((False, TARGET), (True, MASKED_TARGET)):
            rounds = [measure(recipe, epochs, masked=masked) for _ in range(ROUNDS)]
            ours, theirs = (min(times) for times in zip(*rounds, strict=True))
            yield Row(f"{what}, {'masked' if masked else 'dense'}", ours, "bare loop, dense", theirs, target)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(NETWORKS)))
@click.option("--threads", default=2)
@click.option("--rounds", default=1)
@click.option("--ways", default="01")
def main(names, threads, rounds, ways):
    torch.set_num_threads(threads)
    for name in names or NETWORKS:
        recipe, epochs = NETWORKS[name]
        for masked in map(int, ways):
            for _ in range(rounds):
                ours, theirs = measure(recipe, epochs, masked=masked)
                print(
                    f"{name:28} {'masked' if masked else 'dense':7} {ours:9.3f} {theirs:9.3f} {ours / theirs:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
