"""Write an export only after checking it: the file is read back, run, and compared with the masked network.

A file with other outputs never replaces an existing one. This module must not know the content of the files.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from prunekit.contracts.export_format import ExportFormat, PrunedNetwork, Run
from prunekit.deployment.output_check import compare
from prunekit.errors import CheckpointError, ConfigError, ExportError, PrunekitError, nearest
from prunekit.files.atomic import write_atomically
from prunekit.masks.weight_files import encode_weights
from prunekit.plugins.contributions import Contribution, export_formats
from prunekit.plugins.manager import Source


@attrs.frozen
class Exported:
    """A written and checked export.

    Attributes:
        path: path of the file.
        size: size of the file in bytes.
        dense_size: size in bytes of the same network as a dense file.
        error: largest absolute difference between outputs of the file and of the masked network.
        load: one line of code that loads the file.
        notes: notes for the user, one line each.
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
    """Export a pruned network to a file, and check the file before it is renamed to its path.

        exported = export(open_pruned("runs/mnist"), "onnx", "mnist.onnx")
        print(exported.load)

    The outputs are compared on all samples of the network and on a single sample.

    Args:
        pruned: the network.
        to: name of the format, such as "onnx".
        path: file to write; its folder must exist.
        force: overwrite an existing file.
        formats: name -> format; ``None``: the formats of the core and of all installed plugins.

    Raises:
        ConfigError: the format is unknown or needs packages that are not installed.
        CheckpointError: the file exists already, or the file system refuses to write it.
        ExportError: the network cannot be written in this format, or the file has other outputs.
    """
    known = export_formats() if formats is None else formats
    format_, path, error = find_format(to, known), Path(path), 0.0
    check_free(path, force=force)
    with _naming(known[to].source):
        encoded = format_.encode(pruned)

    def check(written: Path) -> None:
        nonlocal error
        with _naming(known[to].source):
            error = _check(format_.reopen(written, pruned), pruned, format_.tolerance, to)

    write_atomically(path, encoded.data, check)
    size = len(encoded.data)
    dense_size = size if to == "dense" else len(encode_weights(pruned.network.state_dict()))
    return Exported(path, size, dense_size, error, format_.load.replace("{path}", _quoted(path)), encoded.notes)


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Name the plugin in an error of a third-party format; an error in a built-in one is a bug, with its traceback."""
    try:
        yield
    except PrunekitError:
        raise
    except Exception as error:
        if source.package == "prunekit":
            raise
        raise source.error(f"failed in its export format: {type(error).__name__}: {error}") from error


def check_free(path: str | os.PathLike[str], *, force: bool) -> None:
    """Raise ``CheckpointError`` if a path is a folder, has no folder, or is a file that may not be overwritten."""
    if Path(path).is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: it is a folder; name a file in it")
    if not Path(path).parent.is_dir():
        raise CheckpointError(f"cannot write {os.fspath(path)}: its folder does not exist; create it first")
    if Path(path).is_file() and not force:
        raise CheckpointError(f"{os.fspath(path)} exists already; overwrite it with --force or choose another --out")


def find_format(name: str, formats: Mapping[str, Contribution[ExportFormat]] | None = None) -> ExportFormat:
    """Return a format by its name.

    Args:
        name: such as "onnx".
        formats: name -> format; ``None``: the formats of the core and of all installed plugins.

    Raises:
        ConfigError: no format has that name.
    """
    known = export_formats() if formats is None else formats
    if name not in known:
        raise ConfigError(f"there is no export format {name!r}{nearest(name, known)}")
    return known[name].value


def _quoted(path: Path) -> str:
    """Return a path as a Python string literal; JSON escapes backslashes and quotes in the same way."""
    return json.dumps(os.fspath(path), ensure_ascii=False)


def _check(run: Run, pruned: PrunedNetwork, tolerance: float, to: str) -> float:
    worst = 0.0
    for samples in (pruned.samples, pruned.samples.take(1)):
        expected = pruned.outputs(samples)
        error, problem = compare(expected, run(samples), tolerance)
        if problem and compare(expected, pruned.outputs(samples), tolerance)[1]:
            raise ExportError(
                f"{pruned.name} returns different outputs for the same inputs, so no export can be checked against it; "
                "remove randomness from its forward"
            )
        if problem:
            raise ExportError(f"as {to}, {problem}; nothing was written; choose another format")
        worst = max(worst, error)
    return worst
