"""Turn machine failures (out of memory, dead data workers) into user-facing errors with the next step.

prunekit's own errors are not changed, and neither are bugs, which keep their traceback.
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
from prunekit.distributed.torch_internals import storage_identity
from prunekit.errors import Interrupted, NotFiniteError, PluginError, PrunekitError, ResumeError, TrainingError
from prunekit.runs.active_run import ActiveRun
from prunekit.runs.checkpoints.checkpoint import newest_path
from prunekit.runs.folder import RunFolder
from prunekit.runs.training.loop import Loop

_NO_MEMORY = "not enough memory"  # part of the message of torch's allocator for the CPU
_MIB = 2**20


def explained(error: BaseException, run: ActiveRun, loop: Loop | None = None) -> BaseException:
    """Return the error to show the user: an explanation, or the same error if it needs none.

    Args:
        error: the error that ends the run.
        run: the run.
        loop: of the current stage, if one is being trained.
    """
    if isinstance(error, PrunekitError):
        return error
    shown = _explained(error, run, loop)
    number = run.interruption.request
    if number is not None and (shown is not None or isinstance(error, KeyboardInterrupt)):
        how = "stopped at once" if run.interruption.immediate else "stopped"
        shown = Interrupted(f"{how} by {number.name}", 128 + number)
    if shown is None:
        return error
    for note in getattr(error, "__notes__", ()):
        shown.add_note(note)
    return shown


def add_next_step(error: BaseException, folder: RunFolder) -> None:
    """Add a note to an error that says how to resume the run, if resuming can help."""
    if isinstance(error, NotFiniteError | ResumeError):  # resuming would fail in the same way
        return
    try:
        resumable = folder.config.is_file()
    except OSError:
        resumable = False
    if not resumable:
        if not folder.path.is_dir():
            error.add_note(f"the folder {folder.path} no longer exists, so the run cannot be resumed")
        return
    newest = newest_path(folder.checkpoints)
    where = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
    launcher = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 'N')} -m " if rank_count() > 1 else ""
    without = f" --no-plugin {error.plugin}" if isinstance(error, PluginError) and error.plugin else ""
    error.add_note(f"{where}; resume with: {launcher}prunekit run --resume {shlex.quote(str(folder.path))}{without}")


def _explained(error: BaseException, run: ActiveRun, loop: Loop | None) -> PrunekitError | None:
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY in text
    ):
        return TrainingError(_out_of_memory(run, loop))
    workers = run.prepared.training.workers
    if workers and _is_of_dead_worker(error):
        how = " ".join(text.split()).rstrip(". ") or "its connection was lost"
        return TrainingError(
            f"a data worker died ({how}), possibly out of memory; try fewer (workers = {workers // 2} in "
            f"{run.folder.config})"
        )
    return None


def _is_of_dead_worker(error: BaseException) -> bool:
    """Recognise what torch raises when a data worker dies: an error of its own, or of the connection to it."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    places = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ConnectionError | EOFError) and any(map(dataloader.__file__.__eq__, places))


def _out_of_memory(run: ActiveRun, loop: Loop | None) -> str:
    """Return a message that says what fills the memory and how to reduce it."""
    training, device = run.prepared.training, run.hardware.device
    weights = list(run.prepared.model.state_dict().values())
    figures = [f"weights {_mib(weights)}"]
    if loop is not None:
        gradients = [parameter for parameter in run.prepared.model.parameters() if parameter.requires_grad]
        moments = [value for entry in loop.optimizer.state.values() for value in entry.values()]
        figures += [f"gradients {_mib(gradients)}", f"optimiser {_mib(moments)}"]
    batch = _batch(run)
    activations = _activations(run, batch)
    if activations is not None:
        figures.append(f"activations about {activations / _MIB:.1f} MiB in fp32")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        figures.append(f"{free / _MIB:.0f} of {total / _MIB:.0f} MiB free")
    size = next((f"batches of {len(tensor)}, " for tensor in tensors_in(batch) if tensor.dim()), "")
    return (
        f"out of memory on {device}: {size}accumulate {training.accumulate}, {training.precision}; "
        f"{', '.join(figures)}; use smaller batches with more accumulation (-o training.accumulate="
        f"{2 * training.accumulate}), or lower precision (-o training.precision=bf16)"
    )


def _batch(run: ActiveRun) -> Any:
    """Return a batch like those of the run, or nothing if there is no memory for one either."""
    try:
        return run.prepared.task.batches("train", 0, run.seeds)[0]
    except Exception:  # noqa: BLE001 - the task's own; the figures are optional
        return ()


def _activations(run: ActiveRun, batch: Any) -> int | None:
    """Return how many bytes a batch's forward pass keeps for the backward pass; ``None`` if this is unknown."""
    if rank_count() > 1:  # the forward pass may need the other ranks, which are elsewhere
        return None
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[storage_identity(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    try:
        # On "meta", tensors have no values and take no memory.
        model = deepcopy(run.prepared.model).to("meta")
        own = {storage_identity(tensor) for tensor in model.state_dict().values()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run.prepared.task.loss(model, map_tensors(lambda tensor: tensor.to("meta"), batch))
    except Exception:  # noqa: BLE001 - any task's forward pass; the figure is optional
        return None
    return sum(size for storage, size in seen.items() if storage not in own)


def _mib(values: list[Any]) -> str:
    size = sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
    return f"{size / _MIB:.1f} MiB"
