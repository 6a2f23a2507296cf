"""What the task trains on and is measured with, wherever it comes from: labelled images, divided into four sets.

This module must not know files or networks.
"""

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunekit.contracts.seeds import Seeds
from prunekit.errors import DataError

MOST_BYTES = 2**32
"""Of all pixels together. They stay in memory, and a small file can claim any amount."""

MOST_LABEL = 1_000_000
_COLOURS = (1, 3)
_SIDES = (1, 512)  # rows and columns; beyond, somebody has mistaken one axis for another
_BYTE = 255


@attrs.frozen(eq=False)
class Images:
    """Images and their classes.

    Attributes:
        pixels: uint8 or float32 ``[images, colours, rows, columns]``.
        labels: int64 ``[images]``.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> "Images":
        """Return some of the images, by their numbers."""
        return Images(self.pixels[chosen], self.labels[chosen])


@attrs.frozen(eq=False)
class ImageData:
    """The four sets of a run; no image is in two of them.

    Attributes:
        train: what is trained on; its labels, and those of the others, are 0 .. classes - 1.
        calibration: for the statistics of neurons.
        validation: for choosing between methods; may be empty.
        test: for the figures at the end.
        classes: how many labels there are.
    """

    train: Images
    calibration: Images
    validation: Images
    test: Images
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Colours, rows and columns of an image."""
        colours, rows, columns = self.train.pixels.shape[1:]
        return colours, rows, columns

    def __str__(self) -> str:
        colours, rows, columns = self.shape
        held = {"calibration": self.calibration, "validation": self.validation, "test": self.test}
        return (
            f"{rows}x{columns} {'grey' if colours == 1 else 'RGB'}, {self.classes} classes; train {len(self.train):,}, "
            + ", ".join(f"{name} {len(images):,}" for name, images in held.items() if len(images))
        )


def labelled(pixels: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], where: str) -> Images:
    """Check arrays and bring them to one form.

    Args:
        pixels: ``[images, rows, columns]``, or ``[images, rows, columns, colours]`` with 1 or 3 of them; whole numbers
            of 0 to 255, or floats.
        labels: ``[images]`` or ``[images, 1]``, whole numbers of at least 0.
        where: what to call them in an error.

    Raises:
        DataError: what they are instead, and what is expected.
    """
    if pixels.ndim == 3:  # noqa: PLR2004 - grey images have no axis for colours
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in _COLOURS or not len(pixels):  # noqa: PLR2004 - as the docstring says
        raise DataError(
            f"{where} has images of shape {pixels.shape[:3] if pixels.shape[3:] == (1,) else pixels.shape}, expected "
            "[images, rows, columns] or [images, rows, columns, 1 or 3 colours] and at least one image; reshape them"
        )
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in pixels.shape[1:3]):
        raise DataError(
            f"{where} has images of {pixels.shape[1]}x{pixels.shape[2]} pixels, expected {_SIDES[0]} to {_SIDES[1]} "
            "a side; make them smaller"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004 - a column, as some sets have it
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where} has labels of shape {labels.shape} and type {labels.dtype}, expected one whole number an image; "
            "write class numbers, not names or one-hot vectors"
        )
    if len(labels) != len(pixels):
        raise DataError(
            f"{where} has {len(pixels):,} images but {len(labels):,} labels, expected one label an image; "
            "take images and labels of the same set"
        )
    if labels.min() < 0 or labels.max() > MOST_LABEL:
        raise DataError(
            f"{where} has labels of {labels.min()} to {labels.max()}, expected 0 to {MOST_LABEL:,}; "
            "number the classes from 0"
        )
    tensor = _tensor(pixels, where).permute(0, 3, 1, 2).contiguous()
    return Images(tensor, torch.from_numpy(labels.astype(np.int64)))


def _tensor(pixels: npt.NDArray[np.generic], where: str) -> Tensor:
    """Return the pixels as uint8 where they are whole numbers, else as float32."""
    expected = "expected bytes (uint8), whole numbers of 0 to 255, or finite floats; convert them"
    if pixels.dtype.kind in "iu":
        if pixels.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > _BYTE):
            raise DataError(f"{where} has pixels of {pixels.min()} to {pixels.max()}, {expected}")
        return torch.from_numpy(pixels.astype(np.uint8))
    if pixels.dtype.kind != "f":
        raise DataError(f"{where} has pixels of type {pixels.dtype}, {expected}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is told
        values = torch.from_numpy(pixels.astype(np.float32))
    if not bool(values.isfinite().all()):
        raise DataError(f"{where} has pixels that are infinite or no number, {expected}")
    return values


def divide(
    train: Images, test: Images, seeds: Seeds, calibration: int | None, validation: int, where: str
) -> ImageData:
    """Hold calibration and validation images out of the training images.

    Args:
        train: what there is to train on.
        test: what there is to test with.
        seeds: decide which images are held out.
        calibration: how many for calibration; ``None``: a tenth, but at most 1,000.
        validation: how many for validation. They are drawn first: another number of calibration images leaves them
            as they are.
        where: what to call the data in an error.

    Raises:
        DataError: two sets that do not fit each other, or too few images for what is to be held out.
    """
    if train.pixels.shape[1:] != test.pixels.shape[1:] or train.pixels.dtype != test.pixels.dtype:
        shapes = [f"{tuple(part.pixels.shape[1:])} {part.pixels.dtype}" for part in (train, test)]
        raise DataError(
            f"{where}: training images are {shapes[0]} (colours, rows, columns), test images {shapes[1]}, "
            "expected the same; take both from one set"
        )
    known = torch.unique(train.labels)
    if len(known) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        raise DataError(f"{where}: all training labels are {known[0]}, expected two classes or more; check the labels")
    strange = test.labels[~torch.isin(test.labels, known)]
    if len(strange):
        raise DataError(
            f"{where}: a test image has label {strange[0]}, which no training image has; take both from one set"
        )
    count = len(train)
    calibrating = min(1000, -(-count // 10)) if calibration is None else calibration
    if count - calibrating - validation < len(known):
        raise DataError(
            f"{where} has {count:,} training images, too few to hold out {calibrating:,} for calibration and "
            f"{validation:,} for validation and train on {len(known)} classes; set task.calibration or task.validation"
        )
    order = torch.randperm(count, generator=seeds.generator("held out"))
    numbers = torch.split(order, [validation, calibrating, count - validation - calibrating])
    # In the order drawn: files may be sorted by class, and the first calibration images are to be of all.
    held_validation, held_calibration, rest = (_renumbered(train.take(part), known) for part in numbers)
    return ImageData(rest, held_calibration, held_validation, _renumbered(test, known), len(known))


def _renumbered(images: Images, known: Tensor) -> Images:
    """Return the images with labels that are places in the sorted list of known ones."""
    return Images(images.pixels, torch.searchsorted(known, images.labels))
