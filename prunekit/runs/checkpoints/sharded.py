"""Checkpoints of a model that is spread over processes: a folder, written by all of them, read by any number of them.

``torch.distributed.checkpoint`` writes one safetensors file for each process, with its parts and where in the whole
they belong, and reads what each process needs of them; all else is JSON beside them. (The format that it writes by
default has an index that is pickled.) The folder has its name when it is complete, so it is complete or absent. This
module must not know what a stage or a plan is; positions are two numbers.
"""

import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunekit.distributed.dtensor import is_sharded
from prunekit.distributed.ranks import own_rank, rank_count, text_from_first, wait_for_all
from prunekit.errors import CheckpointError
from prunekit.files.atomic import rename_folder, temporary_in, write_atomically
from prunekit.runs.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_path,
    flatten,
    keep_newest,
    load_checkpoint,
    restored,
)

_HEADER = "checkpoint.json"


def save_sharded(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> None:
    """Write a checkpoint, each process its parts; then remove all but it and the ``keep - 1`` before it.

    All processes must call it. What is not spread is that of the first one.

    Raises:
        CheckpointError: when it cannot be written; what was there stays.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors, header = flatten(checkpoint)
    header["tensors"] = {
        key: [_dtype(tensor), list(tensor.shape), is_sharded(tensor)] for key, tensor in tensors.items()
    }
    path = checkpoint_path(folder, checkpoint.stage, checkpoint.step, "sharded")
    temporary = Path(text_from_first(str(temporary_in(folder))))
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save(tensors, storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
        if own_rank() == 0:
            write_atomically(temporary / _HEADER, json.dumps(header, sort_keys=True).encode())
            rename_folder(temporary, path)
            keep_newest(path, keep)
    except CheckpointException as error:
        raise CheckpointError(
            f"cannot write {path}: {_first(error)}; free some space or choose another folder"
        ) from error
    finally:
        if own_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    wait_for_all()


def load_any(path: Path, model: nn.Module) -> Checkpoint:
    """Read a checkpoint that one process wrote, or several.

    Args:
        path: a file, or a folder.
        model: what was spread is spread again as its parameters are; where they are not, it is whole.

    Raises:
        CheckpointError: when it is missing, not complete, or none.
    """
    if not path.is_dir():
        return load_checkpoint(path)
    try:
        header = json.loads((path / _HEADER).read_text(encoding="utf-8"))
        tensors = {key: _empty(entry, model) for key, entry in header["tensors"].items()}
        _read(path, tensors)
        return restored(header, tensors, path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error


def _read(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill the tensors from the files of a folder, each process its parts."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(path))
    there: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    for key, tensor in tensors.items():
        # Of a file that is missing nobody tells: the parts in it are missing.
        stored = sum(math.prod(chunk.sizes) for chunk in there[key].chunks) if key in there else -1
        if stored != tensor.numel() or there[key].size != tensor.shape or there[key].properties.dtype != tensor.dtype:
            raise CheckpointError(f"checkpoint {path} cannot be read: {key!r} is not complete; is a file missing?")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads alone
        try:
            load(dict(tensors), storage_reader=reader, no_dist=rank_count() == 1)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {_first(error)}") from error


def _empty(entry: list[Any], model: nn.Module) -> Tensor:
    """Return a tensor to read into; its type, its shape and whether it was spread stand in the header."""
    dtype, shape, spread = entry
    kind = getattr(torch, dtype)
    if spread:
        for parameter in model.parameters():
            if is_sharded(parameter):
                from torch.distributed.tensor import zeros

                mesh, placements = parameter.device_mesh, parameter.placements
                return zeros(shape, dtype=kind, device_mesh=mesh, placements=placements)
    return torch.zeros(shape, dtype=kind)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(error: Any) -> str:
    """Return what went wrong on the first process on which something did."""
    return next((f"rank {rank}: {found}" for rank, (found, _) in sorted(error.failures.items())), str(error))
