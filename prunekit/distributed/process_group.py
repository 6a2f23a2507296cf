"""The process group of a run that torchrun started: joined at the beginning, left at the end, also on errors.

It must not know what the processes do together; that is for ``prunekit.distributed.ranks`` and the modules above it.
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

# The first rank evaluates and writes while the others wait. One that dies ends the others at once, by the launcher.
_PATIENCE = timedelta(hours=2)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Be one of the processes that a launcher started, if one did; without a launcher, do nothing.

    On GPUs NCCL joins what is on them, and gloo what is not; on the CPU gloo does it all.

    Args:
        device: the run's device, as the user named it.

    Raises:
        ConfigError: a device that several processes cannot train on together, a rank that has no GPU, or nowhere to
            meet the others.
        RankError: from inside, when another rank has ended.
    """
    here = launched_rank()
    if here is None:
        yield
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    elif chosen.type != "cpu":
        raise ConfigError(f"device {device!r} is for one process, and there are {here.ranks}; use cuda or cpu")
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    # Its functions keep the process group that there is when it is loaded, as DistributedDataParallel does, to the end
    # of Python, where the group's threads may abort a process that has done its work.
    import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group(backend, rank=here.rank, world_size=here.ranks, timeout=_PATIENCE)
    except (ValueError, distributed.DistError) as error:
        raise ConfigError(
            f"rank {here.rank} of {here.ranks} cannot meet the others: {error}; start the run with torchrun"
        ) from error
    try:
        yield
    except BaseException as error:
        lost = _loss(here, error) if is_lost_contact(error) else None
        traceback.clear_frames(error.__traceback__)
        if lost is not None:
            raise lost from error
        if not isinstance(error, Interrupted):
            claim_report()  # the others are not to speak of a loss
        raise
    finally:
        distributed.destroy_process_group()
        # What averages gradients is held by cycles, and by the frames of an error; it holds the group, too.
        gc.collect()


def _loss(here: LaunchedRank, error: BaseException) -> RankError:
    """Return what the user is to hear of the loss of another rank, if nobody has said more."""
    # The launcher ends all ranks now, and gives them time to say why.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lost = RankError(
        f"rank {here.rank} of {here.ranks} has lost another one, which did not say why: it was killed, perhaps for "
        "lack of memory, or its machine cannot be reached",
        explained=not claim_report(),
    )
    if lost.explained:
        signal.signal(signal.SIGTERM, before)
    for note in getattr(error, "__notes__", ["go on with --resume"]):
        lost.add_note(note)
    return lost


def is_lost_contact(error: BaseException) -> bool:
    """Say whether an error means that another rank has ended or cannot be reached."""
    # Gloo has no error of its own; its messages begin with the place in its sources.
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
