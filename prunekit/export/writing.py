"""Writes an export, after proof: what was written is read back, run, and compared with the masked network.

A file that gives other outputs never takes its place. This module must not know what is in the files.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import attrs
import torch
from torch import Tensor

from prunekit.errors import CheckpointError, ConfigError, ExportError, nearest
from prunekit.export import MODULES
from prunekit.export.formats import ROUNDING, Format, Run
from prunekit.files import write_atomically
from prunekit.pruned import Pruned
from prunekit.sparse_checkpoints import encode_weights


@attrs.frozen
class Exported:
    """An export that was written.

    Attributes:
        path: of the file.
        size: its bytes.
        dense_size: bytes of the same network as a dense file.
        error: greatest absolute difference of an output from that of the masked network.
        load: one line, how to load it.
        notes: what else is to be known, a line each.
    """

    path: Path
    size: int
    dense_size: int
    error: float
    load: str
    notes: tuple[str, ...]


def export(pruned: Pruned, to: str, path: str | os.PathLike[str], *, force: bool = False) -> Exported:
    """Write a pruned network in some format, whole and proved, or not at all.

    The outputs are compared on all samples of the network and on one sample alone.

    Args:
        pruned: the network.
        to: name of the format; a key of ``prunekit.export.MODULES``.
        path: where to; its folder must exist.
        force: write over a file that is there.

    Raises:
        ConfigError: an unknown format, or packages that it needs are not installed.
        CheckpointError: a file is there already, or the file system refuses.
        ExportError: the network cannot be written so, or what was written gives other outputs.
    """
    format_ = find_format(to)
    path = Path(path)
    check_free(path, force=force)
    encoded = format_.encode(pruned)
    error = 0.0

    def check(written: Path) -> None:
        nonlocal error
        error = _check(format_.reopen(written, pruned), pruned, format_.tolerance, to)

    write_atomically(path, encoded.data, check)
    size = len(encoded.data)
    dense_size = size if to == "dense" else len(encode_weights(pruned.network.state_dict()))
    return Exported(path, size, dense_size, error, format_.load.format(path=path), encoded.notes)


def check_free(path: str | os.PathLike[str], *, force: bool) -> None:
    """Raise ``CheckpointError`` for a file that may not be written over, a folder, or a path in none that is there."""
    if Path(path).is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: it is a folder; name a file in it")
    if not Path(path).parent.is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: there is no such folder; create its folder first")
    if Path(path).is_file() and not force:
        raise CheckpointError(f"{os.fspath(path)} is there already; write over it (--force) or choose another --out")


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in MODULES:
        raise ConfigError(f"there is no format {name!r}{nearest(name, MODULES)}")
    found: Format = import_module(f"prunekit.export.{MODULES[name]}").FORMAT
    return found


def _check(run: Run, pruned: Pruned, tolerance: float, to: str) -> float:
    worst = 0.0
    for samples in (pruned.samples, pruned.samples.take(1)):
        expected, found = pruned.outputs(samples), run(samples)
        if (shapes := [tensor.shape for tensor in expected]) != (others := [tensor.shape for tensor in found]):
            raise ExportError(
                f"as {to}, the network gives outputs of {_told(others)}, the masked one of {_told(shapes)}; "
                "nothing was written"
            )
        error, scale = difference(expected, found)
        rounding = [torch.finfo(tensor.dtype).eps for tensor in expected if tensor.is_floating_point()]
        allowed = max(tolerance, ROUNDING * max(rounding, default=0.0))
        if not error <= allowed * max(1.0, scale):
            raise ExportError(
                f"as {to}, an output is off by {error:.3g}, more than {allowed:.3g} (the greatest output is "
                f"{scale:.3g}); nothing was written; choose another format"
            )
        worst = max(worst, error)
    return worst


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, float]:
    """Return the greatest absolute difference of two lists of tensors, and the greatest finite expected value.

    Infinities and NaNs differ from everything but themselves, and then by infinity.
    """
    error = scale = 0.0
    for one, other in zip(expected, found, strict=True):
        first, second = one.double(), other.double()
        same = (first == second) | (first.isnan() & second.isnan())
        apart = torch.where(same, 0.0, (first - second).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
        finite = first.abs()[first.isfinite()]
        error = max(error, float(apart.max())) if apart.numel() else error
        scale = max(scale, float(finite.max())) if finite.numel() else scale
    return error, scale


def _told(shapes: Sequence[torch.Size]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "no tensor"
