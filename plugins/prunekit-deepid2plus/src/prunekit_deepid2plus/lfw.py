"""The protocol files of Labeled Faces in the Wild: people in folds (people.txt) and pairs to verify (pairs.txt).

Both follow View 2 of Huang et al., UMass TR 07-49. This module reads text; it must not know images.
"""

from pathlib import Path

import attrs

from prunekit.errors import DataError

Image = tuple[str, int]
"""A person's name and the number of the image, from 1."""


@attrs.frozen
class Pair:
    """One pair of pairs.txt; ``fold`` counts from 1."""

    first: Image
    second: Image
    fold: int

    @property
    def same(self) -> bool:
        """Whether the pair shows one person."""
        return self.first[0] == self.second[0]


@attrs.frozen
class Protocol:
    """The folds of LFW.

    Attributes:
        people: name -> (fold from 1, images the person has).
        pairs: all pairs, in the file's order.
        folds: how many folds there are.
    """

    people: dict[str, tuple[int, int]]
    pairs: tuple[Pair, ...]
    folds: int


def is_lfw(folder: Path) -> bool:
    """Return whether a folder has one of the protocol files."""
    return (folder / "people.txt").exists() or (folder / "pairs.txt").exists()


def file_name(image: Image) -> str:
    """Return the path of an image below the folder, without its suffix.

    >>> file_name(("Zico", 2))
    'Zico/Zico_0002'
    """
    name, number = image
    return f"{name}/{name}_{number:04d}"


def read_protocol(folder: Path) -> Protocol:
    """Read people.txt and pairs.txt.

    Raises:
        DataError: naming file and line, when one is missing or not of the format, or when the two contradict.
    """
    people = _read_people(folder / "people.txt")
    pairs = _read_pairs(folder / "pairs.txt")
    folds = max(fold for fold, _ in people.values())
    for pair in pairs:
        for name, number in (pair.first, pair.second):
            if name not in people:
                raise DataError(
                    f"{folder / 'pairs.txt'} names {name!r}, who is not in people.txt; take both of one release"
                )
            fold, images = people[name]
            if fold != pair.fold:
                raise DataError(
                    f"{folder / 'pairs.txt'} has {name!r} in fold {pair.fold}, people.txt in fold {fold}; "
                    "take both of one release"
                )
            if not 1 <= number <= images:
                raise DataError(
                    f"{folder / 'pairs.txt'} names image {number} of {name!r}, who has {images} in people.txt; "
                    "take both of one release"
                )
    return Protocol(people, pairs, folds)


class _Lines:
    """Lines of a file as fields, with an error that names file and line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing, but its companion is there; LFW needs people.txt and pairs.txt"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}; put the original file there") from error
        self.lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        self.end = len(text.splitlines()) + 1
        self.taken = 0

    def take(self, expected: str, count: int) -> list[str]:
        """Return the next line's fields, which are ``count`` many."""
        self.taken += 1
        fields = self.lines[self.taken - 1][1] if self.taken <= len(self.lines) else []
        if len(fields) != count:
            raise self.error(expected, fields)
        return fields

    def number(self, text: str, expected: str) -> int:
        """Return a positive number of the line taken last."""
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise self.error(expected, [text])
        return int(text)

    def finish(self) -> None:
        """Refuse lines that nobody took."""
        if self.taken < len(self.lines):
            self.taken += 1
            raise self.error("the end of the file", self.lines[self.taken - 1][1])

    def error(self, expected: str, found: list[str]) -> DataError:
        """Return the error of the line taken last."""
        number = self.lines[self.taken - 1][0] if self.taken <= len(self.lines) else self.end
        shown = repr(" ".join(found)) if found else "nothing"
        return DataError(f"{self.path}, line {number}: found {shown}, expected {expected}; put the original file there")


def _read_people(path: Path) -> dict[str, tuple[int, int]]:
    lines = _Lines(path)
    people: dict[str, tuple[int, int]] = {}
    folds = lines.number(lines.take("the number of folds", 1)[0], "the number of folds")
    for fold in range(1, folds + 1):
        size = lines.number(lines.take(f"the number of people of fold {fold}", 1)[0], "a number of people")
        for _ in range(size):
            name, images = lines.take("a name and a number of images", 2)
            if name in people:
                raise lines.error("a name that did not come before", [name])
            people[name] = fold, lines.number(images, "a number of images")
    lines.finish()
    return people


def _read_pairs(path: Path) -> tuple[Pair, ...]:
    lines = _Lines(path)
    header = [lines.number(text, "folds and pairs") for text in lines.take("folds and pairs of each kind", 2)]
    folds, size = header
    pairs = []
    for fold in range(1, folds + 1):
        for _ in range(size):
            name, first, second = lines.take("a name and two image numbers", 3)
            one, two = (lines.number(text, "an image number") for text in (first, second))
            pairs.append(Pair((name, one), (name, two), fold))
        for _ in range(size):
            one_name, first, two_name, second = lines.take("two names, each with an image number", 4)
            one, two = (lines.number(text, "an image number") for text in (first, second))
            pairs.append(Pair((one_name, one), (two_name, two), fold))
    lines.finish()
    return tuple(pairs)
