"""What went wrong on the machine, in the user's words: memory, data workers, and how to go on after it.

Errors of prunekit's own stay as they are, and so does what is a bug: it keeps its traceback.
"""

import os
import shlex
import traceback
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import dataloader

from prunekit.distributed.batch_shares import map_tensors, tensors_in
from prunekit.distributed.ranks import rank_count
from prunekit.errors import Interrupted, NotFiniteError, PrunekitError, ResumeError, TrainingError
from prunekit.runs.checkpoints.checkpoint import newest_path
from prunekit.runs.folder import RunFolder
from prunekit.runs.state import RunState
from prunekit.runs.training.loop import Loop

_NO_MEMORY = "not enough memory"  # what torch's allocator for the CPU says
_MIB = 2**20


def in_words(error: BaseException, state: RunState, loop: Loop | None = None) -> BaseException:
    """Return the error that the user is to see; the same one where there is nothing to explain.

    Args:
        error: what ends the run.
        state: the run.
        loop: of the stage under way.
    """
    if isinstance(error, PrunekitError):
        return error
    told = _explained(error, state, loop)
    number = state.stop.request
    if number is not None and (told is not None or isinstance(error, KeyboardInterrupt)):
        how = "stopped at once" if state.stop.hurried else "stopped"
        told = Interrupted(f"{how} by {number.name}", 128 + number)
    if told is None:
        return error
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


def add_way_on(error: BaseException, folder: RunFolder) -> None:
    """Note on an error how to go on with the run, where that makes sense."""
    if isinstance(error, NotFiniteError | ResumeError):  # the same again would come to the same
        return
    try:
        resumable = folder.config.is_file()
    except OSError:
        resumable = False
    if not resumable:
        if not folder.path.is_dir():
            error.add_note(f"there is no folder {folder.path}, so nothing to go on from")
        return
    newest = newest_path(folder.checkpoints)
    where = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
    launcher = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 'N')} -m " if rank_count() > 1 else ""
    error.add_note(f"{where}; go on with: {launcher}prunekit run --resume {shlex.quote(str(folder.path))}")


def _explained(error: BaseException, state: RunState, loop: Loop | None) -> PrunekitError | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY in text
    ):
        return TrainingError(_out_of_memory(state, loop))
    workers = state.prepared.training.workers
    if workers and _is_of_dead_worker(error):
        how = " ".join(text.split()).rstrip(". ") or "it is gone"
        return TrainingError(
            f"a data worker died ({how}), perhaps for lack of memory; try fewer (workers = {workers // 2} in "
            f"{state.folder.config})"
        )
    return None


def _is_of_dead_worker(error: BaseException) -> bool:
    """Recognise what torch raises where a data worker has gone: an error of its own, or of the connection to it."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    places = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ConnectionError | EOFError) and any(map(dataloader.__file__.__eq__, places))


def _out_of_memory(state: RunState, loop: Loop | None) -> str:
    """Say what fills the memory, and what makes it less."""
    training, device = state.prepared.training, state.hardware.device
    weights = list(state.prepared.model.state_dict().values())
    figures = [f"weights {_mib(weights)}"]
    if loop is not None:
        gradients = [parameter for parameter in state.prepared.model.parameters() if parameter.requires_grad]
        moments = [value for entry in loop.optimizer.state.values() for value in entry.values()]
        figures += [f"gradients {_mib(gradients)}", f"optimiser {_mib(moments)}"]
    batch = _batch(state)
    activations = _activations(state, batch)
    if activations is not None:
        figures.append(f"activations about {activations / _MIB:.1f} MiB in fp32")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        figures.append(f"{free / _MIB:.0f} of {total / _MIB:.0f} MiB free")
    size = next((f"batches of {len(tensor)}, " for tensor in tensors_in(batch) if tensor.dim()), "")
    return (
        f"out of memory on {device}: {size}accumulate {training.accumulate}, {training.precision}; "
        f"{', '.join(figures)}; take smaller batches and make up for them (-o training.accumulate="
        f"{2 * training.accumulate}), or less precision (-o training.precision=bf16)"
    )


def _batch(state: RunState) -> Any:
    """Return a batch like those of the run, or nothing where there is no memory for one either."""
    try:
        return state.prepared.task.batches("train", 0, state.seeds)[0]
    except Exception:  # noqa: BLE001 - the task's own; the figures are a courtesy
        return ()


def _activations(state: RunState, batch: Any) -> int | None:
    """Return how many bytes a batch's forward pass keeps for the backward pass; ``None`` where it cannot be told."""
    if rank_count() > 1:  # its forward pass may need the others, who are elsewhere
        return None
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()  # noqa: SLF001 - on meta it has no address
        return tensor

    try:
        # On "meta" nothing has values, so nothing takes memory.
        model = deepcopy(state.prepared.model).to("meta")
        own = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}  # noqa: SLF001
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            state.prepared.task.loss(model, map_tensors(lambda tensor: tensor.to("meta"), batch))
    except Exception:  # noqa: BLE001 - any task's forward pass; the figure is a courtesy
        return None
    return sum(size for storage, size in seen.items() if storage not in own)


def _mib(values: list[Any]) -> str:
    size = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
    return f"{size / _MIB:.1f} MiB"
