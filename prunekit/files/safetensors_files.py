"""Open untrusted safetensors files; every failure raises one error that names the file.

This module must not know what the tensors mean. It never unpickles, and it allocates no memory for the sizes that a
file claims.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prunekit.errors import PrunekitError
from prunekit.files.headers import ENTRY, damaged

HEADER_LIMIT = 16 * 2**20  # 50,000 masks need about 10 MiB; once parsed, a hostile header takes ten times its size
_FAULTS = (SafetensorError, OSError, RuntimeError, ValueError, OverflowError)
_BYTES_PER_COMMA = 6  # tensors have at least 8; a shape of a million sizes has 2, and takes 20 times its size parsed
_MORE_VALUES = 100_000
# A parsed JSON container takes 30 times its two characters; our own files have two for each tensor.
_CONTAINERS_PER_TENSOR = 3
_MORE_CONTAINERS = 100_000


@contextmanager
def open_tensors(path: Path, refusal: type[PrunekitError]) -> Iterator[Any]:
    """Open a safetensors file for reading, as ``safetensors.safe_open`` does.

    Args:
        path: of the file.
        refusal: the type of the error for a file that is missing, cut short or not safetensors.

    Yields:
        The open file.

    Raises:
        PrunekitError: of the type ``refusal``, also for failures inside the ``with`` block.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            commas = file.read(length).count(b",") if length <= HEADER_LIMIT else 0
        if length > HEADER_LIMIT:
            raise refusal(
                f"{path}: claims a header of {length} bytes, expected at most {HEADER_LIMIT}; "
                "write or download it again, or check that it is a safetensors file"
            )
        if commas > length / _BYTES_PER_COMMA + _MORE_VALUES:
            raise refusal(f"{path}: has a header of {commas} values, too many for its size; write or download it again")
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except FileNotFoundError as error:
        raise refusal(f"{path}: no such file; check the path") from error
    except _FAULTS as error:
        reason = " ".join(str(error).split())
        raise refusal(f"{path}: not a readable safetensors file: {reason}; write or download it again") from error


def read_header(tensors: Any, path: Path, refusal: type[PrunekitError]) -> dict[str, Any] | None:
    """Return the header of an open file with the rest of its entry, unchecked; ``None`` where the file has none.

    Raises:
        PrunekitError: of the type ``refusal``, when the entry is anything but a JSON object of sensible size.
    """
    text = (tensors.metadata() or {}).get(ENTRY)
    if text is None:
        return None
    wrong = damaged(path)
    if text.count("[") + text.count("{") > _CONTAINERS_PER_TENSOR * len(tensors.keys()) + _MORE_CONTAINERS:
        raise refusal(wrong.format("too many lists for the tensors in the file"))
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(wrong.format("not JSON")) from error
    if not isinstance(header, dict):
        raise refusal(wrong.format("not a JSON object"))
    return header


def some(names: list[str], most: int = 8) -> str:
    """Join names for a message; beyond ``most`` of them, only count the rest."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
