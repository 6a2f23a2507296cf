"""Faces of a folder: one folder per person, any image that Pillow reads; LFW's own layout and folds.

Finds, checks and decodes; whatever is wrong is told at once, all unreadable images together. This module must
not know networks or training.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs
import torch
from PIL import Image

from prunekit.contracts.seeds import Seeds
from prunekit.errors import DataError
from prunekit_deepid2plus import lfw
from prunekit_deepid2plus.data import (
    LEAST_TRAIN_PEOPLE,
    FaceData,
    Faces,
    divide,
    renumbered,
    split_people,
    train_on_all,
    with_calibration,
)
from prunekit_deepid2plus.images import decode, named
from prunekit_deepid2plus.insightface import read_pairs
from prunekit_deepid2plus.pairs import Pairs

UNREADABLE = "mend or remove, or leave out with -o task.skip_unreadable=true"


def read_folder(
    folder: Path,
    size: tuple[int, int],
    seeds: Seeds,
    test_folds: Collection[int] = (),
    verify_on: Path | None = None,
    *,
    skip_unreadable: bool = False,
) -> FaceData:
    """Read the faces of a folder and split them into training, calibration and test people.

    Args:
        folder: one folder per person; with LFW's people.txt and pairs.txt its folds are respected.
        size: rows and columns to bring the images to.
        seeds: decide who verifies, where no protocol does.
        test_folds: LFW's folds to verify on, from 1; by default the last quarter.
        verify_on: InsightFace's .bin file with the pairs to verify; everybody in the folder is trained on then.
        skip_unreadable: leave out images that cannot be read instead of refusing them.

    Raises:
        DataError: the folder is missing or empty, has too few people with two images, or an image is unreadable.
    """
    try:
        files, ignored = _images_of(folder)
        with_protocol = lfw.is_lfw(folder)
    except OSError as error:
        raise DataError(f"data folder {folder} cannot be read: {error.strerror}: {error.filename}") from error
    verified = None if verify_on is None else read_pairs(verify_on, size)
    if with_protocol and verified is None:
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
    images, kept = decode(paths, size, lambda number: str(paths[number]), None if skip_unreadable else UNREADABLE)
    faces = Faces(images, renumbered(people[kept]))
    try:
        if verified is None:
            data = split_people(faces, seeds)
        else:
            test = Faces(verified[0], torch.arange(len(verified[0])))
            data = FaceData(*train_on_all(faces), test, verified[1], identified=False)
        return attrs.evolve(data, left_out=len(paths) - len(images), ignored=ignored)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def _images_of(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Return person -> images, both in the order of their names, and a description of ignored entries."""
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; give a folder with one folder per person")
    if not folder.is_dir():
        raise DataError(f"data folder {folder} is a file; give a folder with one folder per person")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    people: dict[str, list[Path]] = {}
    others = nested = 0
    parent = None
    seen: set[Path] = set()
    # A link to a person's folder is the same person again, and must not be verified against it.
    for person in sorted(folders, key=Path.is_symlink):
        if person.resolve() in seen:
            continue
        seen.add(person.resolve())
        files, deeper = _inside(person)
        images = [path for path in files if _is_image(path)]
        others += len(files) - len(images)
        below = sum(_is_image(path) for part in deeper for path in _inside(part)[0])
        nested += below
        parent = parent or (person if below else None)
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
        hint = f"; give {parent}" if parent else ""
        raise DataError(f"data folder {folder} has {found}{besides}; expected one folder of images per person{hint}")
    return dict(sorted(people.items())), ignored


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the folders in a folder, in the order of their names, without asking for each."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    folders = [Path(entry.path) for entry in entries if entry.is_dir()]
    return [Path(entry.path) for entry in entries if not entry.is_dir()], folders


def _is_image(path: Path) -> bool:
    """Return True if a file is an image by its suffix or, without a suffix, by its content."""
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
            f"{folder} lacks {named(lost)} that pairs.txt names; complete the data, or take other test_folds"
        )
    listed = [(name, number) for name, (_, count) in protocol.people.items() for number in range(1, count + 1)]
    wanted = [image for image in listed if lfw.file_name(image) in found]
    paths = [found[lfw.file_name(image)] for image in wanted]
    images, kept = decode(paths, size, lambda number: str(paths[number]), None if skip_unreadable else UNREADABLE)
    wanted = [image for image, good in zip(wanted, kept.tolist(), strict=True) if good]

    numbers = {name: number for number, name in enumerate(protocol.people)}
    people = torch.tensor([numbers[name] for name, _ in wanted])
    fold = torch.tensor([protocol.people[name][0] for name, _ in wanted])
    testing = torch.isin(fold, torch.tensor(sorted(tested)))
    several = people.bincount()[people] > 1
    training, calibrating = with_calibration(people, ~testing & several, ~testing & ~several)
    train, calibration, test = divide(Faces(images, people), training, calibrating, testing)
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
        calibration,
        test,
        Pairs(
            torch.tensor([place[pair.first] for pair in pairs]),
            torch.tensor([place[pair.second] for pair in pairs]),
            torch.tensor([pair.same for pair in pairs]),
            torch.tensor([pair.fold - 1 for pair in pairs]),
        ),
        test_fold=fold[testing],
        left_out=len(listed) - len(wanted),
    )
