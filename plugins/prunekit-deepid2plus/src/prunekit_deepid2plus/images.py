"""Images to tensors: decoded on several threads into one tensor; all unreadable ones are reported together.

An image is a file, or bytes in memory. This module must not know whom images show.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from prunekit.errors import DataError

SHOWN = 5
"""Unreadable images that an error names one by one."""


def decode(
    sources: Sequence[Path] | Sequence[bytes],
    size: tuple[int, int],
    name: Callable[[int], str],
    way_out: str | None,
) -> tuple[Tensor, Tensor]:
    """Decode images, as many at a time as there are cores.

    Args:
        sources: files, or what is in them.
        size: rows and columns to bring them to.
        name: what an error calls an image, by its number.
        way_out: how an error ends; ``None``: what cannot be read is left out.

    Returns:
        uint8 ``[images, 3, rows, columns]`` of what could be read, and which could, bool ``[sources]``.

    Raises:
        DataError: naming the images that cannot be read.
    """
    images = torch.empty(len(sources), 3, *size, dtype=torch.uint8)

    def place(numbers: range) -> dict[int, str]:
        """Return the images that cannot be read, and why."""
        reasons = {}
        for number in numbers:
            # Pillow's plugins raise many kinds of error on damaged files; whichever it is, the image is unreadable.
            try:
                images[number] = read_image(sources[number], size)
            except UnidentifiedImageError:
                reasons[number] = "no image that Pillow knows, or a damaged one"
            except Exception as error:  # noqa: BLE001
                reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
                reasons[number] = " ".join(reason.split())
        return reasons

    # Pillow lets go of the interpreter while it decodes. A task for each image would cost a kilobyte of it.
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(place, (range(first, len(sources), threads) for first in range(threads)))
        reasons = {number: reason for part in parts for number, reason in part.items()}
    bad = sorted(reasons)
    if bad and way_out is not None:
        raise DataError(
            f"{named([name(number) for number in bad])} cannot be read (the first: {reasons[bad[0]]}); {way_out}"
        )
    kept = torch.ones(len(sources), dtype=torch.bool)
    kept[bad] = False
    if bad:
        reorder(images, torch.cat([kept.nonzero().flatten(), torch.tensor(bad)]))
    return images[: len(images) - len(bad)], kept


def reorder(images: Tensor, order: Tensor) -> None:
    """Make ``images`` what ``images[order]`` is, in its own memory: a second copy of a large set may not fit.

    Args:
        images: contiguous, ``[images, ...]``.
        order: a permutation, int64.
    """
    sources = order.tolist()
    for start in range(len(sources)):
        at = start
        held = images[start].clone() if sources[start] != start else None
        while held is not None and sources[at] != at:
            source = sources[at]
            images[at] = held if source == start else images[source]
            sources[at] = at  # done
            at = source


def read_image(source: Path | bytes, size: tuple[int, int]) -> Tensor:
    """Read one image as uint8 RGB ``[3, rows, columns]``, turned as EXIF says, cropped to the aspect, then resized.

    Raises:
        Exception: of whatever kind Pillow raises on what is no image, or truncated.
    """
    rows, columns = size
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        face = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (columns, rows), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(face.tobytes()), dtype=torch.uint8).view(rows, columns, 3).permute(2, 0, 1)


def named(names: Sequence[str]) -> str:
    """Return how many images there are and the names of the first."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({', '.join(names[:SHOWN])}{rest})"
