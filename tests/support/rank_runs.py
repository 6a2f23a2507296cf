"""The runs that test_ddp compares, in one process or, with torchrun, in several: ``rank_runs.py all=OUT NAME=FOLDER``.

``all`` writes run folders ``OUT/<name>``; the name of a recipe resumes an unfinished run.
"""

import shutil
import sys
from pathlib import Path

import attrs
import torch
from prunekit_deepid2plus.task import DeepID2Plus
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import prunekit
from prunekit.contracts.criterion import Criterion
from prunekit.contracts.markers import hookimpl
from prunekit.distributed.batch_shares import rank_slice
from prunekit.distributed.process_group import process_group
from prunekit.distributed.ranks import gather_samples, own_rank, rank_count, wait_for_all
from prunekit.errors import PrunekitError
from prunekit.plugins.manager import Source, make_manager
from prunekit.plugins.registry import collect
from prunekit.runs.engine import run
from prunekit.runs.folder import RunFolder
from prunekit.runs.preparation import prepare
from prunekit.runs.recipes import build_config
from prunekit.testing import ToyNetwork, ToyTask

SHORT = {"training": {"budget": "12 steps", "retraining": "6 steps"}}


def toy(criterion, schedule="one-shot", *, task="prunekit.testing:ToyTask", density=0.3, **training):
    """Return the recipe of a short run."""
    return {
        "task": {"name": task},
        "criterion": {"name": criterion},
        "schedule": {"name": schedule},
        "density": density,
        "training": {**SHORT["training"], **training},
    }


RECIPES = {
    "correlation": toy("correlation", "layerwise"),
    "magnitude": toy("magnitude", "gradual"),
    "rigl": toy("magnitude", "rigl"),
    **{name: toy(name) for name in ("taylor", "fisher", "snip", "obs", "wanda", "sparsegpt", "grasp", "synflow")},
    "movement": toy("movement", "one-shot"),
    "random": toy("random"),
    "accumulate": toy("taylor", accumulate=2, clip_norm=0.5),
    "odd": toy("taylor", task="odd"),
    "odd-fisher": toy("fisher", task="odd"),
    "odd-pairs": toy("snip", task="pairs"),
    "workers": toy("magnitude", workers=1),
    "norms": toy("wanda", task="norms"),
    "left-out": toy("magnitude", task="left-out"),
    "checkpoints": toy("magnitude", task="norms", checkpoint_every=2),
    "adamw": toy("magnitude", "gradual", task="images"),
    "images": {
        **toy("taylor", task="images"),
        "task": {"name": "images", "network": "resnet", "width": 4, "learning_rate": 0.01},
    },
    "channels": {
        **toy("taylor", "gradual", task="images", density=0.5),
        "task": {"name": "images", "network": "resnet", "width": 4, "learning_rate": 0.01},
        "pattern": "channels",
    },
    "faces": {
        "task": {"name": "exact-faces"},
        "criterion": {"name": "correlation"},
        "schedule": {"name": "one-shot"},  # evaluations take most of the time
        "training": {"budget": "2 steps", "retraining": "1 steps", "precision": "fp32"},
    },
}
# Not the run of one process: other draws.
DRAWING = {"dropout": toy("magnitude", task="dropout", checkpoint_every=2)}


@attrs.frozen
class Odd(ToyTask):
    """Batches of different, odd sizes."""

    name = "odd"

    def batches(self, split, epoch, seeds):
        whole = super().batches(split, epoch, seeds)
        return [tuple(tensor[: 9 + 4 * index] for tensor in whole[index]) for index in range(len(whole))]


@attrs.frozen
class Pairs(Odd):
    """A loss over pairs of samples."""

    name = "pairs"

    def loss(self, model, batch):
        images, labels = batch
        scores = model(images)
        everyone, people = gather_samples(scores), gather_samples(labels)
        alike = (people[:, None] == people[None, :]).float() * 2 - 1
        return nn.functional.cross_entropy(scores, labels) + (alike * torch.cdist(everyone, everyone + 1)).mean()


class NormedNetwork(ToyNetwork):
    """With batch normalisation of maps and of values."""

    def __init__(self):
        super().__init__()
        self.relu_a = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.relu_hidden = nn.Sequential(nn.BatchNorm1d(16, momentum=None, affine=False), nn.ReLU())


@attrs.frozen
class Norms(Odd):
    """Batch normalisation."""

    name = "norms"

    def build_model(self):
        return NormedNetwork()


class DropoutNetwork(ToyNetwork):
    """Draws in training."""

    def __init__(self):
        super().__init__()
        self.relu_hidden = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))


@attrs.frozen
class Dropout(ToyTask):
    """Each rank draws from its own generator."""

    name = "dropout"

    def build_model(self):
        return DropoutNetwork()


class LeftOutNetwork(ToyNetwork):
    """Has a head that the loss does not use."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)


@attrs.frozen
class LeftOut(ToyTask):
    """Parameters that no loss depends on, which must not even decay."""

    name = "left-out"

    def build_model(self):
        return LeftOutNetwork()


@attrs.define(slots=False, eq=False)
class ExactFaces(DeepID2Plus):
    """The reference task, narrow, slow and in double precision: in its first steps rounding grows fast."""

    name = "exact-faces"

    dropout: float = 0.0
    width: float = 1 / 16
    feature: int = 32
    learning_rate: float = 1e-3

    def build_model(self):
        model = super().build_model().double()
        for module in (model, model.network):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return model


@attrs.frozen
class OwnOpinion(Criterion):
    """Ranks the connections of one layer differently on every rank, by mistake."""

    name = "own-opinion"

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        scores = weight.abs()
        return scores.roll(own_rank(), 2) if weight.shape[2] == 72 else scores


class Additions:
    """Registers the plugins that the recipes name besides the built-ins."""

    @hookimpl
    def prunekit_tasks(self):
        return [Odd, Pairs, Norms, LeftOut, Dropout, ExactFaces]

    @hookimpl
    def prunekit_criteria(self):
        return [OwnOpinion]


def carry_out(recipe, folder, *, resume=False):
    """Run a recipe, as the command line does."""
    config = build_config({**recipe, "device": "cpu"})
    manager = make_manager()
    manager.add(Additions(), Source("additions", "tests"))
    prepared = prepare(config, manager, collect(manager), resumed=resume)
    run(config, prepared, manager.hook, RunFolder(folder), resume=resume)


def carry_out_all(out):
    """Run all recipes, and record the error that every rank raises in an invalid one."""
    for name, recipe in {**RECIPES, **DRAWING}.items():
        carry_out(recipe, out / name)
    try:
        carry_out(toy("own-opinion"), out / "bad")
    except PrunekitError as error:
        (out / f"error-{own_rank()}.txt").write_text(f"{type(error).__name__}: {error}")


def go_on(out):
    """Resume a copy of the run that draws, from the middle of its last stage."""
    run, copy = out / "dropout", out / "dropout again"
    if own_rank() == 0:
        shutil.copytree(run, copy)
        max((copy / "checkpoints").glob("stage-*")).unlink()
    wait_for_all()
    carry_out(DRAWING["dropout"], copy, resume=True)


def train_in_own_loop(out):
    """Select masks and hold them in a user's own loop, each rank with its half of the data."""
    for criterion in ("taylor", "wanda"):
        for views in (False, True):
            torch.manual_seed(0)
            model = ToyNetwork()
            images, labels = torch.randn(64, 1, 6, 6), torch.randint(4, (64,))
            mine = rank_slice(64, own_rank(), rank_count())
            parallel = DistributedDataParallel(model, gradient_as_bucket_view=views) if rank_count() > 1 else model
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            masks = prunekit.select(
                parallel, criterion, density=0.3, batches=[(images[mine], labels[mine])], loss=batch_loss
            )
            masks = prunekit.Masks({name.removeprefix("module."): mask for name, mask in masks.tensors.items()})
            with masks.hold(model, optimizer):
                for _ in range(5):
                    optimizer.zero_grad()
                    batch_loss(parallel, (images[mine], labels[mine])).backward()
                    optimizer.step()
            tensors = {**model.state_dict(), **{f"{name}_mask": mask for name, mask in masks.tensors.items()}}
            save_file(tensors, out / f"{criterion}-{views}-{own_rank()}.safetensors")


def batch_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu"):
        for argument in sys.argv[1:]:
            what, _, where = argument.partition("=")
            if what == "all":
                carry_out_all(Path(where))
                go_on(Path(where))
                train_in_own_loop(Path(where))
            else:  # go on with this run
                carry_out(RECIPES[what], Path(where), resume=True)
