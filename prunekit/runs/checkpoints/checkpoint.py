"""Checkpoints: everything a run needs to resume exactly where it stopped, in one safetensors file.

Everything but tensors is JSON in the file's header. A file is complete or absent, and its digest reveals later damage.
This module must not know what a stage or a plan is; positions are two numbers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save
from torch import Tensor

from prunekit.errors import CheckpointError, ResumeError
from prunekit.files.atomic import remove_whole, write_atomically
from prunekit.files.headers import check_header, encode_metadata, new_header, refuse_other_kinds
from prunekit.files.safetensors_files import open_tensors, read_header

KIND = "checkpoint"
# A folder holds a checkpoint that several ranks wrote together, see ``prunekit.runs.checkpoints.sharded``.
_NAME = re.compile(r"stage-(\d+)-step-(\d+)\.(safetensors|sharded)")


@attrs.frozen
class Checkpoint:
    """The state of a run between two optimiser steps.

    Attributes:
        stage: index of the stage to continue with.
        step: completed optimiser steps of the stage.
        tensors: group -> name -> tensor; the groups are "model", "masks", "random" and what else the run saves.
        optimizer: ``Optimizer.state_dict()``, or ``None`` between stages.
        facts: everything else, as JSON values.
    """

    stage: int
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    optimizer: Mapping[str, Any] | None
    facts: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write a checkpoint, then remove all others except the ``keep - 1`` before it.

    Later checkpoints are removed, because the run went back behind them: they were broken, or are out of date.

    Raises:
        CheckpointError: when it cannot be written; existing checkpoints are kept.
    """
    path = checkpoint_path(folder, checkpoint.stage, checkpoint.step)
    write_checkpoint(path, checkpoint)
    keep_newest(path, keep)
    return path


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to any file, and remove no other.

    Raises:
        CheckpointError: when it cannot be written; an existing file is kept.
    """
    flat, content = flatten(checkpoint)
    tensors = {key: tensor.cpu().contiguous().clone() for key, tensor in flat.items()}
    content["digest"] = _digest(tensors, new_header(KIND) | content)
    write_atomically(path, save(tensors, metadata=encode_metadata(KIND, content)))


def flatten(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a checkpoint into tensors by the name "<group>/<name>", and a header of JSON values.

    Raises:
        CheckpointError: when the optimiser's state is neither tensors nor JSON values.
    """
    tensors = {
        f"{group}/{name}": tensor.detach()
        for group, members in checkpoint.tensors.items()
        for name, tensor in members.items()
    }
    optimizer = None
    if checkpoint.optimizer is not None:
        state, numbers = _split_state(checkpoint.optimizer["state"])
        tensors |= {f"optimizer/{key}": tensor.detach() for key, tensor in state.items()}
        optimizer = {"numbers": numbers, "groups": checkpoint.optimizer["param_groups"]}
    content = {
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "groups": sorted(checkpoint.tensors),
        "optimizer": optimizer,
        "facts": checkpoint.facts,
    }
    try:
        return tensors, json.loads(json.dumps(content))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the optimiser cannot be saved ({error}); its groups may hold numbers, text and lists of them, its state "
            "also tensors, each under its own name"
        ) from error


def checkpoint_path(folder: Path, stage: int, step: int, kind: str = "safetensors") -> Path:
    """Return the path of a checkpoint: a file, or a folder for the kind "sharded"."""
    return folder / f"stage-{stage:03d}-step-{step:08d}.{kind}"


def keep_newest(path: Path, keep: int) -> None:
    """Remove all checkpoints except the one just written and the ``keep - 1`` before it.

    Later checkpoints are removed, because the run went back behind them: they were broken, or are out of date.

    Raises:
        CheckpointError: when one cannot be removed.
    """
    _remove_older(path.parent, _place(path), keep)
    for other in _checkpoints(path.parent):
        if other != path and _place(other) >= _place(path):
            _remove(other)


def remove_older(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Remove the checkpoints before one, except ``keep - 1``: a run may be killed between writing and removing.

    Raises:
        CheckpointError: when one cannot be removed.
    """
    _remove_older(folder, (checkpoint.stage, checkpoint.step), keep)


def _remove_older(folder: Path, place: tuple[int, int], keep: int) -> None:
    older = [path for path in _checkpoints(folder) if _place(path) < place]
    for path in older[: max(0, len(older) - keep + 1)]:
        _remove(path)


def _remove(path: Path) -> None:
    try:
        remove_whole(path)
    except OSError as error:
        raise CheckpointError(f"the old checkpoint {path} cannot be removed: {error.strerror}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: when the file is missing, cut short, damaged or not a checkpoint.
    """
    refuse_other_kinds(path, (KIND,), CheckpointError)
    try:
        with open_tensors(path, CheckpointError) as file:
            found = read_header(file, path, CheckpointError)
            header = check_header(found, (KIND,), path, CheckpointError)
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        digest = header.pop("digest", None)
        if digest != _digest(flat, header):
            raise CheckpointError(f"checkpoint {path} cannot be read: its content was changed after it was written")
        return restored(header, flat, path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Return the SHA-256 of contiguous tensors and the header."""
    hashed = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(tensors):
        hashed.update(key.encode())
        hashed.update(tensors[key].reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def restored(content: Mapping[str, Any], flat: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """Return the checkpoint that ``flatten`` split.

    Raises:
        CheckpointError: damaged content; other damage raises ``KeyError`` or similar errors.
    """
    if type(content["stage"]) is not int or type(content["step"]) is not int or not isinstance(content["facts"], dict):
        raise CheckpointError(f"checkpoint {path} cannot be read: stage, step or facts are damaged")
    tensors: dict[str, dict[str, Tensor]] = {group: {} for group in [*content["groups"], "optimizer"]}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        tensors[group][name] = tensor
    state = tensors.pop("optimizer")
    optimizer = None
    if content["optimizer"] is not None:
        optimizer = {
            "state": _join_state(state, content["optimizer"]["numbers"]),
            "param_groups": content["optimizer"]["groups"],
        }
    return Checkpoint(content["stage"], content["step"], tensors, optimizer, content["facts"])


def newest_path(folder: Path) -> Path | None:
    """Return the path of the newest checkpoint, readable or not; ``None`` if there is none."""
    return next(reversed(_checkpoints(folder)), None)


def newest_checkpoint(
    folder: Path, load: Callable[[Path], Checkpoint] = load_checkpoint
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest readable checkpoint, and the errors of newer ones.

    Args:
        folder: of the checkpoints; if it has none, the checkpoint is ``None``, and the run starts from the beginning.
        load: reads one checkpoint.

    Raises:
        ResumeError: when there are checkpoints, but none can be read.
    """
    broken: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            return load(path), broken
        except CheckpointError as error:
            broken.append(str(error))
    if broken:
        raise ResumeError(f"no checkpoint in {folder} can be read: {'; '.join(broken)}")
    return None, broken


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints, oldest first."""
    return sorted((path for path in folder.glob("stage-*") if _NAME.fullmatch(path.name)), key=_place)


def _place(path: Path) -> tuple[int, int]:
    """Return stage and step."""
    stage, step = re.findall(r"\d+", path.name)
    return int(stage), int(step)


def _split_state(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimiser into tensors and plain values, keyed "<parameter>/<name>"."""
    flat = {f"{index}/{name}": value for index, entry in state.items() for name, value in entry.items()}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in flat.items() if key not in tensors}


def _join_state(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**numbers, **tensors}.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    return state
