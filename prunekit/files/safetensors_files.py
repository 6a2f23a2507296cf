"""Opening safetensors files that nobody vouches for: every fault is one error that names the file.

This module must not know what the tensors mean. It never unpickles, and what a header claims costs no memory.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prunekit.errors import PrunekitError

HEADER_LIMIT = 16 * 2**20  # fifty thousand masks need about 10 MiB; parsed, a hostile header takes ten times its size
_FAULTS = (SafetensorError, OSError, RuntimeError, ValueError, OverflowError)
_BYTES_PER_COMMA = 6  # of a tensor at least eight; a shape of a million sizes has two, and takes twenty times that
_MORE_VALUES = 100_000
# Each container of JSON takes 30 times its two characters; what we write has two for each tensor.
_CONTAINERS_PER_TENSOR = 3
_MORE_CONTAINERS = 100_000


@contextmanager
def open_tensors(path: Path, refusal: type[PrunekitError]) -> Iterator[Any]:
    """Open a safetensors file for reading, as ``safetensors.safe_open`` does.

    Args:
        path: the file.
        refusal: the error to raise for a file that is missing, too short, or no safetensors.

    Yields:
        The open file.

    Raises:
        PrunekitError: of the type ``refusal``, also for faults met within the ``with`` block.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            commas = file.read(length).count(b",") if length <= HEADER_LIMIT else 0
        if length > HEADER_LIMIT:
            raise refusal(f"{path}: claims a header of {length} bytes, expected at most {HEADER_LIMIT}; get it again")
        if commas > length / _BYTES_PER_COMMA + _MORE_VALUES:
            raise refusal(f"{path}: has a header of {commas} values, too many for tensors; get it again")
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except FileNotFoundError as error:
        raise refusal(f"{path}: no such file; check the path") from error
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise refusal(f"{path}: not a readable safetensors file: {reason}; write or download it again") from error


def read_header(tensors: Any, entry: str, path: Path, refusal: type[PrunekitError]) -> dict[str, Any] | None:
    """Return the JSON object in an entry of a file's metadata; ``None`` where there is no such entry.

    Raises:
        PrunekitError: of the type ``refusal``, when it is anything else than a JSON object.
    """
    text = (tensors.metadata() or {}).get(entry)
    if text is None:
        return None
    wrong = damaged(path, entry)
    if text.count("[") + text.count("{") > _CONTAINERS_PER_TENSOR * len(tensors.keys()) + _MORE_CONTAINERS:
        raise refusal(wrong.format("too many lists for the tensors in the file"))
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(wrong.format("not JSON")) from error
    if not isinstance(header, dict):
        raise refusal(wrong.format("no JSON object"))
    return header


def damaged(path: Path, entry: str) -> str:
    """Return the message about an entry of a file's metadata that is damaged, with room for how."""
    return f"{path}: the metadata entry {entry!r} is damaged ({{}}); write the file again"


def check_format(
    header: Mapping[str, Any], entry: str, what: str, newest: int, path: Path, refusal: type[PrunekitError]
) -> None:
    """Refuse a header whose entry "format" is none, or not the one that is read here.

    Raises:
        PrunekitError: of the type ``refusal``, naming ``what`` has the format.
    """
    if type(header.get("format")) is not int:
        raise refusal(damaged(path, entry).format("no format version"))
    if header["format"] != newest:
        raise refusal(
            f"{path}: {what} format {header['format']}, written by {header.get('tool')!r}, "
            f"but this version reads format {newest}; update prunekit"
        )


def some(names: list[str], most: int = 8) -> str:
    """Join names for a message, but not a hundred thousand of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
