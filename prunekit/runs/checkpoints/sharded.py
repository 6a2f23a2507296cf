"""Checkpoints of a sharded model: a folder that all ranks write and any number of ranks can read.

``torch.distributed.checkpoint`` writes one safetensors file per rank, with its shards and their places in the whole
tensors, and reads what each rank needs; everything else is JSON beside them. (Its default format has a pickled index.)
The folder is renamed when it is complete, so it is complete or absent. This module must not know what a stage or a plan
is; positions are two numbers.
"""

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
from prunekit.files.headers import encode_json, read_json, refuse_other_kinds
from prunekit.runs.checkpoints.checkpoint import (
    KIND as FILE_KIND,
)
from prunekit.runs.checkpoints.checkpoint import (
    Checkpoint,
    checkpoint_path,
    flatten,
    keep_newest,
    load_checkpoint,
    restored,
)

KIND = "sharded-checkpoint"
_CONTENT = "checkpoint.json"


def save_sharded(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> None:
    """Write a checkpoint, each rank its shards; then remove all others except the ``keep - 1`` before it.

    All ranks must call it. Tensors that are not sharded are taken from the first rank.

    Raises:
        CheckpointError: when it cannot be written; existing checkpoints are kept.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors, content = flatten(checkpoint)
    content["tensors"] = {
        key: [_dtype(tensor), list(tensor.shape), is_sharded(tensor)] for key, tensor in tensors.items()
    }
    path = checkpoint_path(folder, checkpoint.stage, checkpoint.step, "sharded")
    temporary = Path(text_from_first(str(temporary_in(folder))))
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        save(tensors, storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
        if own_rank() == 0:
            write_atomically(temporary / _CONTENT, encode_json(KIND, content))
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
    """Read a checkpoint that one or several ranks wrote.

    Args:
        path: a file, or a folder.
        model: sharded tensors are sharded like its parameters; if those are not sharded, they are read whole.

    Raises:
        CheckpointError: when it is missing, incomplete, or not a checkpoint.
    """
    refuse_other_kinds(path, (FILE_KIND, KIND), CheckpointError)
    if not path.is_dir():
        return load_checkpoint(path)
    try:
        content = read_json(path / _CONTENT, KIND, CheckpointError)
        tensors = {key: _empty(entry, model) for key, entry in content["tensors"].items()}
        _read(path, tensors)
        return restored(content, tensors, path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error


def _read(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill the tensors from the files of a folder, each rank its shards."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(path))
    there: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    for key, tensor in tensors.items():
        # torch does not report a missing file; the shards in it are missing.
        stored = sum(math.prod(chunk.sizes) for chunk in there[key].chunks) if key in there else -1
        if stored != tensor.numel() or there[key].size != tensor.shape or there[key].properties.dtype != tensor.dtype:
            raise CheckpointError(f"checkpoint {path} cannot be read: {key!r} is incomplete; a file may be missing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process reads alone
        try:
            load(dict(tensors), storage_reader=reader, no_dist=rank_count() == 1)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {path} cannot be read: {_first(error)}") from error


def _empty(entry: list[Any], model: nn.Module) -> Tensor:
    """Return a tensor to read into.

    Args:
        entry: from the header: type, shape, and whether the tensor was sharded.
        model: gives the sharding.
    """
    dtype, shape, was_sharded = entry
    kind = getattr(torch, dtype)
    if was_sharded:
        for parameter in model.parameters():
            if is_sharded(parameter):
                from torch.distributed.tensor import zeros

                mesh, placements = parameter.device_mesh, parameter.placements
                return zeros(shape, dtype=kind, device_mesh=mesh, placements=placements)
    return torch.zeros(shape, dtype=kind)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(error: Any) -> str:
    """Return the failure of the first rank that failed."""
    return next((f"rank {rank}: {found}" for rank, (found, _) in sorted(error.failures.items())), str(error))
