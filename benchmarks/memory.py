"""Memory cost of a held mask: the peak of a process that trains, above that of one that trains dense.

The peak is VmHWM of Linux, the most physical memory that the process ever had. (ru_maxrss would not do: a child
begins with that of its parent.)
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import Row
from training_step import WAYS, make_step

TARGET = 60  # MiB
STEPS = 4


def rows() -> Iterator[Row]:
    """Measure each way in a process of its own."""
    dense, ours, *peers = (_peak(way) for way in WAYS)
    for way, peak in zip(WAYS[2:], peers, strict=True):
        yield Row("extra peak memory, SGD", ours - dense, way, peak - dense, TARGET, absolute=True, unit="MiB")


def _peak(way: str) -> float:
    command = [sys.executable, __file__, way, str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(way: str, threads: str) -> None:
    """Train a little and print the peak in MiB."""
    torch.set_num_threads(int(threads))
    step = make_step(way, "SGD")
    for _ in range(STEPS):
        step()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(int(peak[1]) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
