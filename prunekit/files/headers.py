"""One header for every file of ours, ``{kind, format, tool}``, so that a reader can name a file of another kind.

Every file begins with it, so 256 bytes are enough to recognise a file:

- safetensors: the metadata entry ``prunekit``, a JSON object: the header, then what else the kind has to say, sorted
  (one entry, because safetensors stores several in no stable order);
- JSON, and the first line of JSON lines: the first key, ``prunekit``;
- TOML: the first line, ``prunekit = { kind = "recipe", ... }``;
- a folder: the header of one file in it.

Formats that other tools define have no header: plain weights, ONNX models and torch.export programs. (Some versions of
transformers refuse safetensors files whose metadata lacks an entry of theirs.) This module must not know what the bytes
of a kind mean: ``KINDS`` is text only.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from prunekit.errors import PrunekitError

ENTRY = "prunekit"
"""Where the header is: the metadata entry of safetensors, the first key of JSON and TOML."""


@attrs.frozen
class Kind:
    """What people call a kind of file, and what reads it.

    Attributes:
        called: with its article: "a mask file".
        reader: the next step of someone who has such a file: "load it with prunekit.load_masks".
        format: the number of the layout that is written and read; raise it when the layout changes.
    """

    called: str
    reader: str
    format: int = 1


_RESUME = "resume its run with prunekit run --resume FOLDER"

KINDS: Mapping[str, Kind] = {
    "masks": Kind("a mask file", "load it with prunekit.load_masks"),
    "sparse": Kind("a sparse checkpoint", "load it with prunekit.load_weights"),
    "weights": Kind("a file of plain weights", "load it with prunekit.load_weights"),
    "csr": Kind("a csr export", "load it with prunekit.load_csr"),
    "semi-structured": Kind("a 2:4 export", "load it with prunekit.load_semi_structured"),
    "shrunk": Kind("a shrunk network", "load it with prunekit.load_shrunk"),
    "torch-export": Kind("a torch.export program", "load it with torch.export.load"),
    "onnx": Kind("an ONNX model", "run it with onnxruntime.InferenceSession"),
    "checkpoint": Kind("a checkpoint of a run", _RESUME),
    "sharded-checkpoint": Kind("a sharded checkpoint of a run", _RESUME),
    "run": Kind("a run folder", "open it with prunekit.open_pruned, or resume it with prunekit run --resume"),
    "recipe": Kind("a recipe", "start a run from it with prunekit run RECIPE"),
    "plan": Kind("the plan of a run", _RESUME),
    "environment": Kind("an environment record", "read it as JSON"),
    "metrics": Kind("a metric log", "read it as JSON, line by line"),
    "result": Kind("the result of a run in a sweep", "give its folder to prunekit sweep --runs"),
    "summary": Kind("the summary of a sweep", "read it as JSON"),
}
"""The kind in a header, or of a file without one -> its name and its reader."""

_FOLDERS = {"checkpoint.json": ("sharded-checkpoint", "sharded-checkpoint"), "config.toml": ("recipe", "run")}
"""File in a folder -> its kind, and the kind of the folder."""

_START = 256
_KIND = rb"([a-z0-9-]{1,40})"
_STARTS = (
    rb'.{8}\{"__metadata__":\{"prunekit":"\{\\"kind\\": \\"' + _KIND + rb'\\"',
    rb'\{\s*"prunekit":\s*\{\s*"kind":\s*"' + _KIND + rb'"',
    rb'prunekit = \{ kind = "' + _KIND + rb'"',
)
_PLAIN = re.compile(rb'.{4}\x00{4}\{\s*"', re.DOTALL)  # eight bytes count those of the JSON object that follows
_ONNX = re.compile(rb"\x08.\x12\x07pytorch", re.DOTALL)  # the protobuf fields IR version and producer


def tool() -> str:
    """Return the name and version of the tool that writes our files."""
    try:
        return f"prunekit {version('prunekit')}"
    except PackageNotFoundError:
        return "prunekit (not installed)"


def new_header(kind: str) -> dict[str, Any]:
    """Return the header of a new file whose kind is a key of ``KINDS``."""
    return {"kind": kind, "format": KINDS[kind].format, "tool": tool()}


def encode_metadata(kind: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a safetensors file: header and content in one entry, the same bytes for the same content.

    Raises:
        TypeError, ValueError: content that JSON cannot hold.
    """
    header, rest = json.dumps(new_header(kind)), json.dumps(content, sort_keys=True)
    return {ENTRY: f"{header[:-1]}, {rest[1:]}" if content else header}


def encode_json(kind: str, content: Mapping[str, Any]) -> bytes:
    """Return a JSON file that a person can read; what JSON cannot hold is written as text."""
    whole = {ENTRY: new_header(kind), **content}
    return (json.dumps(whole, indent=2, default=str) + "\n").encode()


def encode_toml(kind: str) -> str:
    """Return the header as the first line of a TOML file."""
    fields = ", ".join(f"{key} = {json.dumps(value)}" for key, value in new_header(kind).items())
    return f"{ENTRY} = {{ {fields} }}\n"


def read_json(path: Path, kind: str, refusal: type[PrunekitError]) -> dict[str, Any]:
    """Read a JSON file of one kind and return its content without the header.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged.
        PrunekitError: of the type ``refusal``, when the file is of another kind or format.
    """
    refuse_other_kinds(path, (kind,), refusal)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or ENTRY not in content:
        raise ValueError(f"not a JSON object with the key {ENTRY!r}")
    header = content.pop(ENTRY)
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str) or type(header.get("format")) is not int:
        raise ValueError(f"the entry {ENTRY!r} is not a header")
    check_header(header, (kind,), path, refusal)
    return content


def check_header(header: Any, kinds: tuple[str, ...], path: Path, refusal: type[PrunekitError]) -> dict[str, Any]:
    """Return a header that has one of the kinds that the caller reads, and its format.

    Args:
        header: as it is in the file; ``None`` where the file has none.
        kinds: what the caller reads; the first one names it in messages.
        path: of the file, for messages.
        refusal: the type of the error.

    Raises:
        PrunekitError: of the type ``refusal``, saying what the file is, or what is wrong with its header.
    """
    wanted = KINDS[kinds[0]].called
    if header is None:
        raise refusal(f"{path} has no prunekit header, so it is not {wanted}; write the file again")
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise refusal(damaged(path).format("no kind"))
    if header["kind"] not in kinds:
        raise refusal(_other_kind(path, header["kind"], kinds))
    if type(header.get("format")) is not int:
        raise refusal(damaged(path).format("no format version"))
    kind = KINDS[header["kind"]]
    if header["format"] != kind.format:
        raise refusal(
            f"{path} is {kind.called} of format {header['format']}, written by {header.get('tool')!r}, "
            f"but this version reads format {kind.format}; update prunekit"
        )
    return header


def damaged(path: Path) -> str:
    """Return the message about a damaged header, with a placeholder for the damage."""
    return f"{path}: the entry {ENTRY!r} is damaged ({{}}); write the file again"


def refuse_other_kinds(path: Path, kinds: tuple[str, ...], refusal: type[PrunekitError]) -> None:
    """Refuse a file of ours that is of another kind; every reader calls this first.

    A file that is missing, damaged, or another tool's passes: the reader knows better what to say about it.

    Args:
        path: of a file or folder.
        kinds: what the caller reads; the first one names it in messages.
        refusal: the type of the error.

    Raises:
        PrunekitError: of the type ``refusal``, saying what the file is and what reads it.
    """
    kind = kind_of(path)
    if kind is not None and kind not in kinds:
        raise refusal(_other_kind(path, kind, kinds))


def kind_of(path: Path) -> str | None:
    """Return the kind of a file or folder, judged by the first bytes only; ``None``: none of ours, damaged or missing.

    Any safetensors file without our header counts as plain weights, although other tools also store masks so.
    """
    try:
        if path.is_dir():
            return next((whole for name, (kind, whole) in _FOLDERS.items() if kind_of(path / name) == kind), None)
        return _kind_of_file(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _kind_of_file(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(_START)
    for pattern in _STARTS:
        if found := re.match(pattern, start, re.DOTALL):
            return found[1].decode()
    if _PLAIN.match(start) and ENTRY.encode() not in start:
        return "weights"
    if _ONNX.match(start):
        return "onnx"
    return "torch-export" if start.startswith(b"PK") and _is_torch_export(path) else None


def _is_torch_export(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return False


def _other_kind(path: Path, kind: str, kinds: tuple[str, ...]) -> str:
    unknown = Kind(f"a file of kind {kind!r}", "read it with the plugin that wrote it, or update prunekit")
    found = KINDS.get(kind, unknown)
    return f"{path} is {found.called}, not {KINDS[kinds[0]].called}; {found.reader}"
