"""Join the process group of a run started by torchrun, and leave it at the end, also on errors.

It must not know what the processes do together; see ``prunekit.distributed.ranks``.
"""

import gc
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module

import torch
from torch import distributed

from prunekit.distributed.devices import pick_device
from prunekit.distributed.failure import claim_report
from prunekit.distributed.launcher import LaunchedRank, launched_rank
from prunekit.errors import ConfigError, Interrupted, RankError

# The first rank evaluates and writes while the others wait. If a rank dies, the launcher ends the others at once.
_PATIENCE = timedelta(hours=2)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group of a launcher such as torchrun; without a launcher, do nothing.

        with process_group("auto"):
            train()  # rank_count() and own_rank() now describe the group

    With GPUs, NCCL reduces tensors on them and gloo those on the CPU; without GPUs, gloo reduces all.

    Args:
        device: the run's device, as the user named it.

    Raises:
        ConfigError: several processes cannot train on the device, a rank has no GPU, or the rendezvous failed.
        RankError: contact with another rank was lost inside the context.
    """
    here = launched_rank()
    if here is None:
        yield
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type != "cpu":
        raise ConfigError(f"device {device!r} supports a single process, but there are {here.ranks}; use cuda or cpu")
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # If this module is loaded later, as DistributedDataParallel does, its functions keep the process group alive until
    # Python exits, when the group's threads may abort a process that has finished its work.
    import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group(backend, rank=here.rank, world_size=here.ranks, timeout=_PATIENCE)
    except (ValueError, distributed.DistError) as error:
        raise ConfigError(
            f"rank {here.rank} of {here.ranks} failed at the rendezvous: {error}; start the run with torchrun"
        ) from error
    try:
        yield
    except BaseException as error:
        lost = _lost_contact(here, error) if is_lost_contact(error) else None
        traceback.clear_frames(error.__traceback__)
        if lost is not None:
            raise lost from error
        if not isinstance(error, Interrupted):
            claim_report()  # so that the other ranks do not report a lost contact
        raise
    finally:
        distributed.destroy_process_group()
        # DistributedDataParallel, which holds the group, is itself held by reference cycles and frames of the error.
        gc.collect()


def _lost_contact(here: LaunchedRank, error: BaseException) -> RankError:
    """Return the error to report for a lost contact, marked as explained if another rank has reported the cause."""
    # The launcher now ends all ranks, and gives them time to report the cause.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lost = RankError(
        f"rank {here.rank} of {here.ranks} lost contact with another rank, which gave no reason; it may have been "
        "killed (out of memory?) or its machine may be unreachable",
        explained=not claim_report(),
    )
    if lost.explained:
        signal.signal(signal.SIGTERM, before)
    for note in getattr(error, "__notes__", ["resume with --resume"]):
        lost.add_note(note)
    return lost


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error means that another rank has ended or cannot be reached."""
    # Gloo has no exception class; its messages begin with a path in its source code.
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
