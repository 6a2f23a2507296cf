"""Images from an npz file: x_train, y_train, x_test, y_test.

An npz file is a zip archive of arrays with their types and shapes. What each claims is checked before it is
unpacked, and nothing is ever unpickled. This module must not know what becomes of the images.
"""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from prunekit.errors import DataError
from prunekit_images.data import MOST_BYTES, Images, labelled

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_HINT = f"expected an npz file with the arrays {', '.join(_KEYS)}"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> tuple[Images, Images]:
    """Read training and test images; other arrays in the file are ignored.

    Raises:
        DataError: no such file, one that is damaged or claims too much, or arrays that are no labelled images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [key for key in _KEYS if key not in found]
            if missing:
                raise DataError(
                    f"{path} has no array {missing[0]!r} but {', '.join(sorted(found)[:8]) or 'none'}; {_HINT}"
                )
            size = sum(archive.getinfo(f"{key}.npy").file_size for key in _KEYS)
            if size > MOST_BYTES:
                raise DataError(f"{path} unpacks to {size:,} bytes, expected at most {MOST_BYTES:,}; take fewer images")
            arrays = {key: _read(archive, key, path) for key in _KEYS}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; {_HINT}") from error
    # What zipfile and NumPy raise on damaged files; on an encrypted one, or an unknown packing, a RuntimeError.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is no npz file, or a damaged one: {reason}; {_HINT}") from error
    train, test = (
        labelled(arrays[f"x_{part}"], arrays[f"y_{part}"], f"{path}, x_{part} and y_{part},")
        for part in ("train", "test")
    )
    return train, test


def _read(archive: zipfile.ZipFile, key: str, path: Path) -> npt.NDArray[Any]:
    name = f"{key}.npy"
    with archive.open(name) as member:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} has version {version} of the format")
        shape, _, dtype = _HEADERS[version](member)
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds Python objects, which are never loaded; save plain numbers")
        claimed, there = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size - member.tell()
        if claimed != there:
            raise ValueError(f"{name} claims {claimed:,} bytes of numbers, but has {there:,}")
    with archive.open(name) as member:
        array: npt.NDArray[Any] = np.asarray(npy.read_array(member, allow_pickle=False))
    return array
