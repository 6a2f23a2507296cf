"""The environment of a run: everything besides its recipe that decides its result.

Versions, commit, seed, hardware and torch's settings. It must not know what a run is.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import prunekit
from prunekit.distributed.ranks import rank_count

_PACKAGES = ("prunekit", "torch", "numpy", "attrs", "cattrs", "pluggy", "safetensors")
_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PRUNEKIT_NO_PLUGINS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_LOGS",
)
"""The environment variables that are recorded; others may hold secrets."""


def environment(seed: int, hardware: str, classes: Iterable[str] = ()) -> dict[str, Any]:
    """Return versions, commit, seed, hardware and settings, as JSON values.

    Args:
        seed: the root seed.
        hardware: device and precision, in words.
        classes: names of task, criterion and schedule; for ``file.py:Class``, the file's SHA-256 is recorded.
    """
    return {
        "command": sys.argv,
        "working_directory": str(Path.cwd()),
        "seed": seed,
        "hardware": hardware,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": rank_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "plugins": _plugins(),
        "files": _files(classes),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the processor's name and the instruction set that torch uses on it, which decides the last bits."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plugins() -> dict[str, str]:
    """Return the versions of the installed packages that provide plugins."""
    packages = {point.dist for point in metadata.entry_points(group="prunekit") if point.dist}
    return {package.name: package.version for package in sorted(packages, key=lambda package: package.name)}


def _files(classes: Iterable[str]) -> dict[str, str]:
    paths = (name.rpartition(":")[0] for name in classes)
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths if path.endswith(".py")}


def _commit() -> str | None:
    """Return the commit of the checkout that prunekit runs from, with "-dirty" if it was changed."""
    root = Path(prunekit.__file__).parents[1]
    if not (root / ".git").exists():  # prunekit is installed, perhaps within another project's checkout
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
