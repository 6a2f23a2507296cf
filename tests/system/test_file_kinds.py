"""Every kind of file, given to every reader: it is read, or one sentence says what it is and what reads it.

``pytest -s`` prints the whole table.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import prunekit
from prunekit.cli import main
from prunekit.deployment.export.writing import export
from prunekit.deployment.sparse import semi_structured
from prunekit.errors import CheckpointError, ConfigError, MaskError, PrunekitError, ResumeError
from prunekit.files.headers import ENTRY, KINDS, kind_of, read_json
from prunekit.runs.checkpoints.checkpoint import Checkpoint
from prunekit.runs.checkpoints.sharded import load_any, save_sharded
from prunekit.runs.folder import RunFolder, add_environment, check_resumable
from prunekit.runs.opening import read_stages
from prunekit.runs.recipes import read_recipe

SWEEP = """
[task]
name = "prunekit.testing:ToyTask"
[training]
budget = "2 steps"
[sweep]
structures = ["hidden=1/4"]
criteria = ["magnitude"]
"""
MODEL = """
from torch.nn import Flatten, Linear, ReLU, Sequential
def make():
    return Sequential(Flatten(), Linear(128, 64), ReLU(), Linear(64, 32))
"""
SAMPLE = torch.ones(2, 128)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def pruned_network() -> tuple[nn.Module, prunekit.Masks]:
    """Return a network in which two of every four inputs are kept, and half of the units."""
    model = network()
    mask = (torch.arange(128) % 4 < 2).expand(64, 128).clone()
    mask[32:] = False
    masks = prunekit.Masks({"1.weight": mask, "1.bias": torch.arange(64) < 32})
    masks.apply(model)
    return model, masks


def write_exports(folder: Path) -> dict[str, Path]:
    model, masks = pruned_network()
    (folder / "network.py").write_text(MODEL)
    prunekit.Masks({"1.weight": masks.tensors["1.weight"]}).save(folder / "masks.safetensors")
    prunekit.save_sparse(folder / "weights.safetensors", model.state_dict(), masks)
    opened = prunekit.open_pruned(
        f"{folder / 'network.py'}:make",
        masks=folder / "masks.safetensors",
        weights=folder / "weights.safetensors",
        inputs=["128"],
    )
    formats = {"dense": "weights", "sparse": "sparse", "csr": "csr", "semi-structured": "semi-structured"}
    formats |= {"shrunk": "shrunk", "torch-export": "torch-export", "onnx": "onnx"}
    paths = {kind: folder / f"export.{name}" for name, kind in formats.items()}
    for name, kind in formats.items():
        export(opened, name, paths[kind])
    return paths


def write_sweep(folder: Path) -> dict[str, Path]:
    (folder / "small.toml").write_text(SWEEP)
    arguments = ["--seeds", "1", "--jobs", "1", "--out", str(folder / "sweep"), "--runs", str(folder / "runs")]
    assert main(["sweep", str(folder / "small.toml"), *arguments]) == 0
    run = next(path for path in sorted((folder / "runs").glob("seed*")) if (path / "masks.safetensors").exists())
    return {
        "run": run,
        "recipe": run / "config.toml",
        "plan": run / "plan.json",
        "environment": run / "environment.json",
        "metrics": run / "metrics.jsonl",
        "masks": run / "masks.safetensors",
        "result": run / "result.json",
        "checkpoint": max((run / "checkpoints").glob("stage-*")),
        "summary": folder / "sweep" / "summary.json",
    }


def write_sharded(folder: Path) -> dict[str, Path]:
    (folder / "checkpoints").mkdir()
    save_sharded(folder / "checkpoints", Checkpoint(0, 1, {"model": network().state_dict()}, None, {}))
    return {"sharded-checkpoint": next((folder / "checkpoints").iterdir())}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Kind -> a file or folder of it, under a name that does not tell."""
    folder = tmp_path_factory.mktemp("kinds")
    with pytest.warns(UserWarning, match="torch.distributed"):  # it writes a sharded checkpoint in one process
        paths = write_sharded(folder)
    paths |= write_exports(folder) | write_sweep(folder)
    named = {}
    for number, (kind, path) in enumerate(paths.items()):
        named[kind] = folder / f"file-{number}"
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, named[kind])
    return named


@attrs.frozen
class Reader:
    """A reader, the error that it raises, and the kinds that it reads; the first one is named in its messages."""

    read: Callable[[Path], Any]
    error: type[PrunekitError]
    kinds: tuple[str, ...]


def named(name: str, read: Callable[[RunFolder], Any]) -> Callable[[Path], Any]:
    """Return a reader of a file that has a fixed name in a run folder."""

    def under_its_name(path: Path) -> Any:
        folder = path.parent / f"as-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / name)
        return read(RunFolder(folder))

    return under_its_name


def check_run(path: Path) -> None:
    check_resumable(RunFolder(path))


READERS = {
    "prunekit.load_masks": Reader(prunekit.load_masks, MaskError, ("masks", "sparse")),
    "prunekit.load_weights": Reader(prunekit.load_weights, CheckpointError, ("weights", "sparse")),
    "prunekit.load_csr": Reader(lambda path: prunekit.load_csr(path, network(), SAMPLE), CheckpointError, ("csr",)),
    # The part of it that needs no GPU.
    "prunekit.load_semi_structured": Reader(semi_structured.read, CheckpointError, ("semi-structured",)),
    "prunekit.load_shrunk": Reader(lambda path: prunekit.load_shrunk(network(), path), CheckpointError, ("shrunk",)),
    "prunekit.open_pruned": Reader(lambda path: prunekit.open_pruned(str(path)), ConfigError, ("run",)),
    "prunekit run --resume": Reader(check_run, CheckpointError, ("run",)),
    "checkpoint of a resumption": Reader(
        lambda path: load_any(path, network()), CheckpointError, ("checkpoint", "sharded-checkpoint")
    ),
    "plan of a resumption": Reader(named("plan.json", read_stages), ResumeError, ("plan",)),
    "environment of a resumption": Reader(
        named("environment.json", lambda folder: add_environment(folder, {})), CheckpointError, ("environment",)
    ),
    "prunekit run RECIPE": Reader(read_recipe, ConfigError, ("recipe",)),
    "prunekit sweep --runs": Reader(
        lambda path: read_json(path, "result", CheckpointError), CheckpointError, ("result",)
    ),
}
NOT_READ_BY_US = {"torch-export", "onnx", "metrics", "summary"}
"""Other tools read these, or people do: each of them is a row of the table and no column."""


def cell(path: Path, reader: Reader) -> str:
    """Return what a reader says to a file: "" where it reads it."""
    try:
        reader.read(path)
    except reader.error as error:
        return str(error).replace(f"{path.parent}/", "")
    return ""


def test_the_table_has_every_kind_and_every_kind_has_a_reader(files: Mapping[str, Path]) -> None:
    assert files.keys() == KINDS.keys()
    assert {kind for reader in READERS.values() for kind in reader.kinds} == KINDS.keys() - NOT_READ_BY_US
    for kind in KINDS:
        named = [name for name in READERS if name.startswith("prunekit") and name in KINDS[kind].reader]
        assert named or kind in {*NOT_READ_BY_US, "environment"}, kind


def test_the_first_bytes_of_every_file_tell_its_kind(files: Mapping[str, Path]) -> None:
    assert {kind: kind_of(path) for kind, path in files.items()} == {kind: kind for kind in files}
    assert all(ENTRY in path.read_text(errors="replace")[:200] for kind, path in files.items() if has_header(kind))


def has_header(kind: str) -> bool:
    return kind not in {"weights", "torch-export", "onnx", "run", "sharded-checkpoint"}


@pytest.mark.parametrize("name", READERS)
def test_every_kind_is_read_or_named_with_its_reader(files: Mapping[str, Path], name: str) -> None:
    reader = READERS[name]
    for kind, path in files.items():
        message = cell(path, reader)
        print(f"\n{name} | {KINDS[kind].called} | {message or 'reads it'}", end="")  # noqa: T201 - the table
        if kind in reader.kinds:
            assert not message
            continue
        assert "\n" not in message
        assert "damaged" not in message
        assert KINDS[kind].reader in message
        if (name, kind) == ("prunekit.load_masks", "weights"):  # the form in which other tools store masks
            assert "no mask inside" in message
            assert KINDS[kind].called in message
        else:
            assert f" is {KINDS[kind].called}, not {KINDS[reader.kinds[0]].called}; " in message
