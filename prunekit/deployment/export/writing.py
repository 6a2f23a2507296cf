"""Writes an export, after proof: what was written is read back, run, and compared with the masked network.

A file that gives other outputs never takes its place. This module must not know what is in the files.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from prunekit.contracts.export_format import ExportFormat, PrunedNetwork, Run
from prunekit.deployment.output_check import compare
from prunekit.errors import CheckpointError, ConfigError, ExportError, nearest
from prunekit.files.atomic import write_atomically
from prunekit.masks.weight_files import encode_weights
from prunekit.plugins.contributions import Contribution, export_formats


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


def export(
    pruned: PrunedNetwork,
    to: str,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    formats: Mapping[str, Contribution[ExportFormat]] | None = None,
) -> Exported:
    """Write a pruned network in some format, whole and proved, or not at all.

    The outputs are compared on all samples of the network and on one sample alone.

    Args:
        pruned: the network.
        to: name of the format, such as "onnx".
        path: where to; its folder must exist.
        force: overwrite an existing file.
        formats: the formats by name; ``None``: those of the core and of all installed plugins.

    Raises:
        ConfigError: an unknown format, or packages that it needs are not installed.
        CheckpointError: a file is there already, or the file system refuses.
        ExportError: the network cannot be written so, or what was written gives other outputs.
    """
    format_ = find_format(to, formats)
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
    return Exported(path, size, dense_size, error, format_.load.format(path=_quoted(path)), encoded.notes)


def check_free(path: str | os.PathLike[str], *, force: bool) -> None:
    """Raise ``CheckpointError`` for a file that may not be written over, a folder, or a path in none that is there."""
    if Path(path).is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: it is a folder; name a file in it")
    if not Path(path).parent.is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: there is no such folder; create its folder first")
    if Path(path).is_file() and not force:
        raise CheckpointError(f"{os.fspath(path)} is there already; write over it (--force) or choose another --out")


def find_format(name: str, formats: Mapping[str, Contribution[ExportFormat]] | None = None) -> ExportFormat:
    """Return a format by its name.

    Args:
        name: such as "onnx".
        formats: the formats by name; ``None``: those of the core and of all installed plugins.

    Raises:
        ConfigError: no format has that name.
    """
    known = export_formats() if formats is None else formats
    if name not in known:
        raise ConfigError(f"no export format is called {name!r}{nearest(name, known)}")
    return known[name].value


def _quoted(path: Path) -> str:
    """Return a path as Python code; JSON escapes the backslashes of Windows and quotes alike."""
    return json.dumps(os.fspath(path), ensure_ascii=False)


def _check(run: Run, pruned: PrunedNetwork, tolerance: float, to: str) -> float:
    worst = 0.0
    for samples in (pruned.samples, pruned.samples.take(1)):
        expected = pruned.outputs(samples)
        error, problem = compare(expected, run(samples), tolerance)
        if problem and compare(expected, pruned.outputs(samples), tolerance)[1]:
            raise ExportError(
                f"{pruned.name} gives other outputs whenever it is called, so that no export can be compared with it; "
                "take what is random out of its forward"
            )
        if problem:
            raise ExportError(f"as {to}, {problem}; nothing was written; choose another format")
        worst = max(worst, error)
    return worst
