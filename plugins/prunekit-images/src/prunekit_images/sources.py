"""Choose the reader for a path that the user gave. This module must not know how any reader works."""

from pathlib import Path

from prunekit.errors import DataError
from prunekit_images.arrays import read_npz
from prunekit_images.data import Images
from prunekit_images.digits import read_digits
from prunekit_images.folders import has_classes, read_class_folders
from prunekit_images.idx import has_idx, read_idx_folder

_HINT = "give an .npz file, a folder of IDX files, or a folder with train/CLASS/IMAGE and test/CLASS/IMAGE"


def read_images(path: Path | None, side: int | None) -> tuple[Images, Images]:
    """Return training and test images.

    Args:
        path: file or folder; ``None``: scikit-learn's digits.
        side: rows and columns to bring the images of class folders to; ``None``: as they are.

    Raises:
        DataError: it is not there, no reader takes it, or the reader finds something wrong.
    """
    try:
        return _read(path, side)
    except OSError as error:  # a folder that may not be looked into
        raise DataError(f"data {error.filename or path} cannot be read: {error.strerror}; {_HINT}") from error


def _read(path: Path | None, side: int | None) -> tuple[Images, Images]:
    if path is not None and path.is_dir() and has_classes(path):
        return read_class_folders(path, side)
    if side is not None:
        raise DataError(
            f"task.image_size is {side}, but {path or 'the digits'} is no folder of class folders; leave it out"
        )
    if path is None:
        return read_digits()
    if not path.exists():
        raise DataError(f"data {path} does not exist; {_HINT}")
    if path.is_file():
        return read_npz(path)
    if has_idx(path):
        return read_idx_folder(path)
    raise DataError(f"data folder {path} has neither IDX files nor folders train and test; {_HINT}")
