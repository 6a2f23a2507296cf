"""Images from a folder of IDX files, as MNIST comes: two bytes 0, a type, the number of axes, their lengths, the data.

Files may be packed with gzip. Nothing is read before the claimed lengths have been checked. This module must not know
what becomes of the images.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from prunekit.errors import DataError
from prunekit_images.data import MOST_BYTES, Images, labelled

_PARTS = ("train", "t10k")
_KINDS = {"images": 3, "labels": 1}  # -> number of axes
_BYTES = 0x08
_HINT = "take the original file"


def has_idx(folder: Path) -> bool:
    """Return whether a folder has one of the four files."""
    return any(_find(folder, part, kind) for part in _PARTS for kind in _KINDS)


def read_idx_folder(folder: Path) -> tuple[Images, Images]:
    """Read training and test images.

    Args:
        folder: has train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k, or with ".gz".

    Raises:
        DataError: a missing or damaged file; names it.
    """
    train, test = (_read_part(folder, part) for part in _PARTS)
    return train, test


def _read_part(folder: Path, part: str) -> Images:
    arrays = []
    for kind, axes in _KINDS.items():
        path = _find(folder, part, kind)
        if path is None:
            raise DataError(f"{folder} has no {_name(part, kind)}, packed with gzip or not; add it to the others")
        arrays.append(read_idx(path, axes))
    return labelled(arrays[0], arrays[1], f"{folder}, {part},")


def _name(part: str, kind: str, dot: str = "-") -> str:
    return f"{part}-{kind}{dot}idx{_KINDS[kind]}-ubyte"


def _find(folder: Path, part: str, kind: str) -> Path | None:
    paths = (folder / f"{_name(part, kind, dot)}{end}" for dot in "-." for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Read one file of bytes.

    Args:
        path: packed with gzip where its name ends so.
        axes: how many the array must have.

    Raises:
        DataError: it cannot be read, is no such file, claims too much, or is shorter or longer than it claims.
    """
    try:
        with _opened(path) as file:
            return _interpret(file, path, axes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}; {_HINT}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {_HINT}") from error


def _opened(path: Path) -> Any:  # gzip's file is no BinaryIO to a type checker
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _interpret(file: BinaryIO, path: Path, axes: int) -> npt.NDArray[np.uint8]:
    magic = file.read(4)
    if magic != bytes((0, 0, _BYTES, axes)):
        raise DataError(
            f"{path} begins with {magic.hex(' ') or 'nothing'}, expected 00 00 08 0{axes}: an IDX file of bytes with "
            f"{axes} {'axis' if axes == 1 else 'axes'}; {_HINT}"
        )
    lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path} ends within its header; {_HINT}")
    shape = struct.unpack(f">{axes}I", lengths)
    count = math.prod(shape)
    if count > MOST_BYTES:
        raise DataError(
            f"{path} claims {' x '.join(map(str, shape))} = {count:,} bytes, expected at most {MOST_BYTES:,}; {_HINT}"
        )
    data = file.read(count + 1)  # one more, to see that there is none
    if len(data) != count:
        found = f"{len(data):,}" if len(data) < count else "more"
        raise DataError(f"{path} claims {count:,} bytes of data but has {found}; {_HINT}")
    return np.frombuffer(data, np.uint8).reshape(shape)
