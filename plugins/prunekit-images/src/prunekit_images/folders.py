"""Images from folders: train/CLASS/image and test/CLASS/image, in any format that Pillow reads.

This module must not know what becomes of the images.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from prunekit.errors import DataError
from prunekit_images.data import MOST_BYTES, Images, labelled
from prunekit_images.decoding import decode, look

_TESTS = ("test", "val")
_LARGEST = 64
"""Sides up to here are taken as they are: more is seldom meant for networks this small."""

_HINT = "expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val)"


def has_classes(folder: Path) -> bool:
    """Return whether a folder is divided for training and test."""
    return any((folder / part).is_dir() for part in ("train", *_TESTS))


def read_class_folders(folder: Path, side: int | None) -> tuple[Images, Images]:
    """Read training and test images; a label is the place of the class among the sorted names in ``train``.

    Args:
        folder: with ``train``, and ``test`` or ``val``; in each, one folder per class.
        side: rows and columns to bring images to; ``None``: they have one size of at most 64 pixels a side.

    Raises:
        DataError: a part or a class that is missing or empty, images that cannot be read or have many sizes.
        OSError: a folder that cannot be looked into.
    """
    test = next((folder / part for part in _TESTS if (folder / part).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise DataError(f"{folder} has no folder {'test' if test is None else 'train'!r}; {_HINT}")
    parts = {part: _classes(part) for part in (folder / "train", test)}
    names = list(parts[folder / "train"])
    strange = [name for name in parts[test] if name not in names]
    if strange:
        raise DataError(f"{test} has a class {strange[0]!r} that {folder / 'train'} has not; make the classes the same")
    every = [path for classes in parts.values() for paths in classes.values() for path in paths]
    sizes, grey = look(every)
    size = (side, side) if side is not None else _only(sizes, folder)
    if len(every) * size[0] * size[1] * (1 if grey else 3) > MOST_BYTES:
        raise DataError(f"{len(every):,} images of {folder} would take more than {MOST_BYTES:,} bytes; take fewer")
    results = []
    for part, classes in parts.items():
        labels = np.repeat([names.index(name) for name in classes], [len(paths) for paths in classes.values()])
        pixels = decode([path for paths in classes.values() for path in paths], size, grey=grey)
        results.append(labelled(pixels, labels, str(part)))
    return results[0], results[1]


def _classes(part: Path) -> dict[str, list[Path]]:
    """Return class -> images, both in the order of their names."""
    Image.init()  # makes Pillow's list of endings complete
    endings = Image.registered_extensions()
    folders = sorted(path for path in part.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {
        folder.name: sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file())
        for folder in folders
    }
    if not found:
        raise DataError(f"{part} has no folder of a class; {_HINT}")
    for name, paths in found.items():
        if not paths:
            raise DataError(f"{part / name} has no image; add some or remove the folder")
    return found


def _only(sizes: set[tuple[int, int]], folder: Path) -> tuple[int, int]:
    if len(sizes) == 1 and max(size := next(iter(sizes))) <= _LARGEST:
        return size
    told = f"{len(sizes)} sizes" if len(sizes) > 1 else "{}x{} pixels".format(*next(iter(sizes)))
    raise DataError(
        f"the images of {folder} have {told}, expected one size of at most {_LARGEST} a side; "
        "bring them to one with -o task.image_size=32"
    )
