"""Faces of a folder: one folder per person, any image that Pillow reads; LFW's own layout and folds.

Finds, checks and decodes; whatever is wrong is told at once, all unreadable images together. This module must
not know networks or training.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from prunekit.errors import DataError
from prunekit.seeds import Seeds
from prunekit_deepid2plus import lfw
from prunekit_deepid2plus.data import LEAST_TRAIN_PEOPLE, FaceData, Faces, renumbered, split_people, with_calibration
from prunekit_deepid2plus.verification import Pairs

THREADS = 4
"""Pillow lets go of the interpreter while it decodes; more threads wait for the disk only."""

SHOWN = 5
"""Unreadable images that an error names one by one."""


def read_folder(
    folder: Path,
    size: tuple[int, int],
    seeds: Seeds,
    test_folds: Collection[int] = (),
    *,
    skip_unreadable: bool = False,
) -> FaceData:
    """Read the faces of a folder and split them into training, calibration and test people.

    Args:
        folder: one folder per person; with LFW's people.txt and pairs.txt its folds are respected.
        size: rows and columns to bring the images to.
        seeds: decide who verifies, where no protocol does.
        test_folds: LFW's folds to verify on, from 1; by default the last quarter.
        skip_unreadable: leave out images that cannot be read instead of refusing them.

    Raises:
        DataError: the folder is missing or empty, has too few people with two images, or an image is unreadable.
    """
    try:
        files, ignored = _images_of(folder)
        with_protocol = lfw.is_lfw(folder)
    except OSError as error:
        raise DataError(f"data folder {folder} cannot be read: {error.strerror}: {error.filename}") from error
    if with_protocol:
        data = _read_lfw(folder, files, size, test_folds, skip_unreadable=skip_unreadable)
        return attrs.evolve(data, ignored=ignored)
    if test_folds:
        raise DataError(
            f"test_folds needs LFW's people.txt and pairs.txt, which {folder} has not; leave test_folds out"
        )
    if sum(len(paths) > 1 for paths in files.values()) == 0:
        raise DataError(
            f"nobody of {len(files)} people in {folder} has two images; verification needs pairs: add images"
        )
    paths = [path for name in files for path in files[name]]
    people = torch.tensor([number for number, name in enumerate(files) for _ in files[name]])
    images, kept = _decode(paths, size, skip_unreadable=skip_unreadable)
    faces = Faces(images, renumbered(people[kept]))
    try:
        return attrs.evolve(split_people(faces, seeds), left_out=len(paths) - len(faces), ignored=ignored)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def _images_of(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return person -> images, both in the order of their names, and what is there besides, in words."""
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; give a folder with one folder per person")
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is a file; give a folder with one folder per person")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    people: dict[str, list[Path]] = {}
    others = nested = 0
    seen: set[Path] = set()
    # A link to a person's folder is the same person again, and must not be verified against it.
    for person in sorted(folders, key=Path.is_symlink):
        if person.resolve() in seen:
            continue
        seen.add(person.resolve())
        inside = sorted(person.iterdir())
        deeper = [path for path in inside if path.is_dir()]
        images = [path for path in inside if path not in deeper and _is_image(path)]
        others += len(inside) - len(deeper) - len(images)
        nested += sum(_is_image(path) for part in deeper for path in part.iterdir() if path.is_file())
        if images:
            people[person.name] = images
    counts = {
        "files that are no images": others,
        "images one folder too deep": nested,
        "links to folders of the same people": len(folders) - len(seen),
    }
    ignored = tuple(f"{count:,} {what}" for what, count in counts.items() if count)
    if not people:
        found = "no image in its folders" if folders else "no folder in it"
        besides = f" (but {', '.join(ignored)})" if ignored else ""
        raise DataError(f"data folder {folder} has {found}{besides}; expected one folder of images per person")
    return dict(sorted(people.items())), ignored


def _is_image(path: Path) -> bool:
    """Return whether a file is to be read: by its suffix, or where it has none, by what is in it."""
    if path.suffix:
        return path.suffix.lower() in Image.registered_extensions()
    try:
        with Image.open(path):
            return True
    except Exception:  # noqa: BLE001 - as in decoding: whatever Pillow raises, it is no image
        return False


def _read_lfw(
    folder: Path,
    files: Mapping[str, Sequence[Path]],
    size: tuple[int, int],
    test_folds: Collection[int],
    *,
    skip_unreadable: bool,
) -> FaceData:
    protocol = lfw.read_protocol(folder)
    folds = range(1, protocol.folds + 1)
    tested = set(test_folds) or set(folds[-max(2, protocol.folds // 4) :])
    if not tested < set(folds) or len(tested) < 2:  # noqa: PLR2004 - the threshold of a fold comes from another
        raise DataError(
            f"test_folds {' '.join(map(str, sorted(tested)))} of {folder}: expected at least two of "
            f"1 to {protocol.folds}, and one left to train on"
        )
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for paths in files.values() for path in paths}
    paired = {image for pair in protocol.pairs if pair.fold in tested for image in (pair.first, pair.second)}
    lost = sorted(name for name in map(lfw.file_name, paired) if name not in found)
    if lost:
        raise DataError(
            f"{folder} lacks {_named(lost)} that pairs.txt names; complete the data, or take other test_folds"
        )
    listed = [(name, number) for name, (_, count) in protocol.people.items() for number in range(1, count + 1)]
    wanted = [image for image in listed if lfw.file_name(image) in found]
    images, kept = _decode([found[lfw.file_name(image)] for image in wanted], size, skip_unreadable=skip_unreadable)
    wanted = [image for image, good in zip(wanted, kept.tolist(), strict=True) if good]

    numbers = {name: number for number, name in enumerate(protocol.people)}
    people = torch.tensor([numbers[name] for name, _ in wanted])
    fold = torch.tensor([protocol.people[name][0] for name, _ in wanted])
    testing = torch.isin(fold, torch.tensor(sorted(tested)))
    several = people.bincount()[people] > 1
    everyone = Faces(images, people)
    training, calibration = with_calibration(people, ~testing & several, ~testing & ~several)
    train = everyone.take(training)
    if train.person_count < LEAST_TRAIN_PEOPLE:
        raise DataError(
            f"{folder}: {train.person_count} people of the training folds have two images, "
            f"expected {LEAST_TRAIN_PEOPLE}; leave more folds out of test_folds"
        )
    place = {wanted[at]: order for order, at in enumerate(testing.nonzero().flatten().tolist())}
    pairs = [pair for pair in protocol.pairs if pair.fold in tested and pair.first in place and pair.second in place]
    if len({(pair.fold, pair.same) for pair in pairs}) < 2 * len(tested):
        raise DataError(f"{folder}: a test fold lost all its pairs of a kind to unreadable images; mend some")
    return FaceData(
        train,
        everyone.take(calibration),
        everyone.take(testing),
        Pairs(
            torch.tensor([place[pair.first] for pair in pairs]),
            torch.tensor([place[pair.second] for pair in pairs]),
            torch.tensor([pair.same for pair in pairs]),
            torch.tensor([pair.fold - 1 for pair in pairs]),
        ),
        left_out=len(listed) - len(wanted),
    )


def _decode(paths: Sequence[Path], size: tuple[int, int], *, skip_unreadable: bool) -> tuple[Tensor, Tensor]:
    """Return uint8 ``[images, 3, rows, columns]`` of what could be read, and which could, bool ``[paths]``."""
    images = torch.empty(len(paths), 3, *size, dtype=torch.uint8)

    def decode(number: int) -> str:
        """Return why an image cannot be read, "" if it can."""
        # Pillow's plugins raise many kinds of error on damaged files; whichever it is, the image is unreadable.
        try:
            images[number] = read_image(paths[number], size)
        except UnidentifiedImageError:
            return "no image that Pillow knows, or a damaged one"
        except Exception as error:  # noqa: BLE001
            return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        reasons = list(pool.map(decode, range(len(paths))))
    kept = torch.tensor([not reason for reason in reasons])
    bad = [str(path) for path, reason in zip(paths, reasons, strict=True) if reason]
    if bad and not skip_unreadable:
        first = next(filter(None, reasons))
        raise DataError(
            f"{_named(bad)} cannot be read (the first: {first}); mend or remove, "
            "or leave out with -o task.skip_unreadable=true"
        )
    return (images if not bad else images[kept]), kept


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """Read one image as uint8 RGB ``[3, rows, columns]``, turned as EXIF says, cropped to the aspect, then resized.

    Raises:
        Exception: of whatever kind Pillow raises on a file that is no image, or truncated.
    """
    rows, columns = size
    with Image.open(path) as image:
        face = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (columns, rows), Image.Resampling.BILINEAR)
    return torch.frombuffer(bytearray(face.tobytes()), dtype=torch.uint8).view(rows, columns, 3).permute(2, 0, 1)


def _named(names: Sequence[str]) -> str:
    """Return how many images there are and the names of the first."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} image{'s' if len(names) > 1 else ''} ({', '.join(names[:SHOWN])}{rest})"
