"""Image files to pixels: checked first, then decoded on several threads; all unreadable ones are reported together.

This module must not know what images show.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from prunekit.errors import DataError

SHOWN = 5
"""Unreadable images that an error names one by one."""

MOST_PIXELS = 50_000_000
"""Of one file: small ones can claim any number."""

_GREY = {"1", "L", "LA", "I;16"}

Result = TypeVar("Result")


def look(paths: Sequence[Path]) -> tuple[set[tuple[int, int]], bool]:
    """Return the sizes (rows, columns) that the images have, and whether all are grey; decodes none.

    Raises:
        DataError: naming the images that cannot be read.
    """

    def header(path: Path) -> tuple[tuple[int, int], bool]:
        with _opened(path) as image:
            return (image.height, image.width), image.mode in _GREY

    found = _each(header, paths)
    return {size for size, _ in found}, all(grey for _, grey in found)


def decode(paths: Sequence[Path], size: tuple[int, int], *, grey: bool) -> npt.NDArray[np.uint8]:
    """Decode images, turned as EXIF says, cropped in the middle to the aspect of ``size``, then resized.

    Args:
        paths: the files.
        size: rows and columns to bring them to.
        grey: brightness alone.

    Returns:
        ``[images, rows, columns, 1 or 3]``.

    Raises:
        DataError: naming the images that cannot be read.
    """

    def pixels(path: Path) -> npt.NDArray[np.uint8]:
        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            if (upright.height, upright.width) != size:
                upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(upright, np.uint8).reshape(*size, 1 if grey else 3)

    return np.stack(_each(pixels, paths))


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
        image = Image.open(path)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"claims {image.width:,} x {image.height:,} pixels, expected at most {MOST_PIXELS:,}")
    return image


def _each(read: Callable[[Path], Result], paths: Sequence[Path]) -> list[Result]:
    reasons: dict[Path, str] = {}

    def attempt(path: Path) -> Result | None:
        # Pillow's plugins raise many kinds of error on damaged files; whichever it is, the image is unreadable.
        try:
            return read(path)
        except UnidentifiedImageError:
            reasons[path] = "no image that Pillow knows, or a damaged one"
        except Exception as error:  # noqa: BLE001
            reasons[path] = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        return None

    # Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = [result for result in pool.map(attempt, paths) if result is not None]
    if reasons:
        bad = [path for path in paths if path in reasons]
        rest = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(
            f"{len(bad)} image{'s' * (len(bad) > 1)} ({', '.join(map(str, bad[:SHOWN]))}{rest}) cannot be read "
            f"(the first: {reasons[bad[0]]}); mend or remove"
        )
    return results
