"""How long a person waits for help: ``prunekit --help`` against the bare interpreter and against importing torch."""

import subprocess
import sys
from collections.abc import Iterator

from measuring import Row, interleaved

COMMANDS = {
    "--help": [sys.executable, "-m", "prunekit", "--help"],
    "list --help": [sys.executable, "-m", "prunekit", "list", "--help"],
    "torch": [sys.executable, "-c", "import torch"],
}
TARGET = 80  # ms, whole process


def rows() -> Iterator[Row]:
    """Measure whole processes in turns."""
    calls = {
        name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
        for name, command in COMMANDS.items()
    }
    times = interleaved(calls, repeats=9)
    for name in ("--help", "list --help"):
        yield Row(f"prunekit {name}", times[name], "import torch", times["torch"], TARGET, absolute=True)
