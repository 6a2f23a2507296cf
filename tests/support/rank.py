"""A process that waits for work as one of several ranks; see the fixture ``two_ranks``.

Usage: rank.py RANK COUNT RENDEZVOUS PIPE, with the file of the rendezvous and the number of an open pipe for work.
"""

import importlib.util
import io
import sys
import traceback
import warnings
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed

from prunekit import Masks

sys.path.append(str(Path(__file__).parents[1] / "system"))  # where test modules find the kill harness


def pack(value):
    """Return numbers, text, tensors, masks, and lists, tuples and dicts of them, as bytes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def unpack(data):
    with torch.serialization.safe_globals([Masks]):
        return torch.load(io.BytesIO(data), weights_only=True)


@cache
def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def serve(rank, count, rendezvous, number):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch warns against writing to the outputs of a sharded module in place; nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=count)
    with Connection(number) as pipe:
        while True:
            path, name, arguments = unpack(pipe.recv_bytes())
            try:
                answer = True, getattr(load(path), name)(*arguments)
            except BaseException:  # noqa: BLE001 - it is reported to the test
                answer = False, traceback.format_exc()
            # Not pipe.send, which would pass tensors as files that are open in this process.
            pipe.send_bytes(pack(answer))


if __name__ == "__main__":
    try:
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    except (EOFError, ConnectionError):  # the tests are over
        distributed.destroy_process_group()
