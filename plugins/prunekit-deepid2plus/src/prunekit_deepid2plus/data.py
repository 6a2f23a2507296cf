"""Training, calibration and test faces from any source: three sets of faces without common people.

Splits people, never images of one person, except that images of training people may serve calibration where
there are too few people of a single image. This module must not know files or networks.
"""

import math

import attrs
import torch
from torch import Tensor

from prunekit.contracts.seeds import Seeds
from prunekit.errors import DataError
from prunekit_deepid2plus.images import reorder
from prunekit_deepid2plus.pairs import Pairs, balanced_pairs, occurrences

LEAST_TRAIN_PEOPLE = 2
LEAST_TEST_PEOPLE = 4
"""Two folds of two people: with fewer there is no pair of two people, or no other fold for the threshold."""

LEAST_CALIBRATION_IMAGES = 200
"""With fewer samples the chance correlation of two neurons, 1/sqrt(samples), hides most real ones."""

TEST_SHARE = 4
MOST_TEST_PEOPLE = 1000
"""One person in four verifies; beyond these the figures gain nothing, and an evaluation takes longer."""

CALIBRATION_SHARE = 5
MOST_LENT_IMAGES = 10_000
"""One image in five of a training person, where calibration images must come from them, and no more than these."""


@attrs.frozen(eq=False)
class Faces:
    """Images and whom they show.

    Attributes:
        images: uint8 ``[images, 3, rows, columns]``.
        people: person numbers ``[images]``, int64, 0, 1, ... within this set.
    """

    images: Tensor
    people: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def person_count(self) -> int:
        """How many people there are."""
        return int(self.people.max()) + 1 if len(self) else 0


def renumbered(people: Tensor) -> Tensor:
    """Return person numbers without gaps, in the same order."""
    return torch.searchsorted(torch.unique(people), people)


@attrs.frozen(eq=False)
class FaceData:
    """The three sets of a run, and the pairs of the third that are verified.

    Attributes:
        train: people with two images or more.
        calibration: images for the statistics of neurons; others than those of ``train`` where there are any.
        test: people that neither of the others has.
        pairs: pairs of test images.
        test_fold: the fold of each test image, as the protocol counts it ``[images]``; None: there is no protocol.
        identified: whether it is known whom test images show; a list of pairs does not tell.
        left_out: images that were expected but are missing or unreadable.
        ignored: what else was found and not used, in words.
    """

    train: Faces
    calibration: Faces
    test: Faces
    pairs: Pairs
    test_fold: Tensor | None = None
    identified: bool = True
    left_out: int = 0
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"train {self.train.person_count:,} people, {len(self.train):,} images; "
            f"calibration {len(self.calibration):,} images; "
            + (f"test {self.test.person_count:,} people, " if self.identified else f"test {len(self.test):,} images, ")
            + f"{len(self.pairs.same):,} pairs"
            + (f"; {self.left_out:,} image{'s' * (self.left_out > 1)} missing or unreadable" if self.left_out else "")
            + (f"; ignored: {', '.join(self.ignored)}" if self.ignored else "")
        )


def split_people(faces: Faces, seeds: Seeds) -> FaceData:
    """Split faces that come without a protocol.

    A quarter of the people with two images or more verify, at most a thousand, the others train. People with one
    image are for calibration; where they are too few, one image in five of each training person joins them and
    trains nothing.

    Raises:
        DataError: with too few people who have two images.
    """
    counts = faces.people.bincount()
    several = (counts > 1).nonzero().flatten()
    tested = min(max(LEAST_TEST_PEOPLE, len(several) // TEST_SHARE), MOST_TEST_PEOPLE)
    if len(several) < tested + LEAST_TRAIN_PEOPLE:
        raise DataError(
            f"{len(several)} of {len(counts)} people have two images or more, expected at least "
            f"{LEAST_TEST_PEOPLE + LEAST_TRAIN_PEOPLE}: {LEAST_TEST_PEOPLE} to verify and {LEAST_TRAIN_PEOPLE} "
            "to train on; add images"
        )
    several = several[torch.randperm(len(several), generator=seeds.generator("test people"))]
    train = torch.isin(faces.people, several[tested:])
    train, calibration = with_calibration(faces.people, train, counts[faces.people] == 1)
    training, lent, test = divide(faces, train, calibration, torch.isin(faces.people, several[:tested]))
    return FaceData(training, lent, test, balanced_pairs(test.people, seeds))


def train_on_all(faces: Faces) -> tuple[Faces, Faces]:
    """Return the images to train on and to calibrate with, where nobody verifies.

    Raises:
        DataError: with too few people who have two images.
    """
    several = faces.people.bincount()[faces.people] > 1
    train, calibration = with_calibration(faces.people, several, ~several)
    training, lent, _ = divide(faces, train, calibration, torch.zeros_like(train))
    if training.person_count < LEAST_TRAIN_PEOPLE:
        raise DataError(
            f"{training.person_count} people have two images to train on, expected {LEAST_TRAIN_PEOPLE}; add images"
        )
    return training, lent


def divide(faces: Faces, train: Tensor, calibration: Tensor, test: Tensor) -> tuple[Faces, Faces, Faces]:
    """Return three sets that are slices of the images, which are brought into their order in place.

    Args:
        faces: all; not to be used afterwards.
        train: bool ``[images]``.
        calibration: the same as ``train``, or else disjoint from it.
        test: disjoint from both.
    """
    wanted = [train, calibration & ~train, test]
    others = ~(train | calibration | test)
    numbers = [part.nonzero().flatten() for part in (*wanted, others)]
    reorder(faces.images, torch.cat(numbers))
    images = torch.split(faces.images, [len(part) for part in numbers])
    sets = [Faces(part, renumbered(faces.people[chosen])) for part, chosen in zip(images, numbers, strict=True)]
    return sets[0], sets[1] if len(sets[1]) else sets[0], sets[2]


def with_calibration(people: Tensor, train: Tensor, calibration: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images to train on and to calibrate with, bool ``[images]`` each.

    Where there are too few to calibrate with, every fifth image of a training person (of many, every tenth or more)
    joins them and trains nothing; where nobody has five and there is no other, the training images serve both.
    """
    if int(calibration.sum()) >= LEAST_CALIBRATION_IMAGES:
        return train, calibration
    held = train & (occurrences(people) % CALIBRATION_SHARE == CALIBRATION_SHARE - 1)
    lent = held.nonzero().flatten()
    held[lent] = torch.arange(len(lent)) % max(1, math.ceil(len(lent) / MOST_LENT_IMAGES)) == 0
    enough = bool((calibration | held).any())
    return train & ~held, (calibration | held) if enough else train
