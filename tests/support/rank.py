"""One of several processes that wait for work; see the fixture ``two_ranks``. Usage: rank.py RANK COUNT MEETING LINE.

They meet at the file MEETING; LINE is the number of the open pipe over which work comes.
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


def serve(rank, count, meeting, number):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch's word of caution about changing in place what a sharded module returns; nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    with Connection(number) as line:
        while True:
            path, name, arguments = unpack(line.recv_bytes())
            try:
                answer = True, getattr(load(path), name)(*arguments)
            except BaseException:  # noqa: BLE001 - it is told to the test
                answer = False, traceback.format_exc()
            # Not line.send, which would hand tensors over as files that are open here.
            line.send_bytes(pack(answer))


if __name__ == "__main__":
    try:
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    except (EOFError, ConnectionError):  # the tests are over
        distributed.destroy_process_group()
