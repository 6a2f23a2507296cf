"""What the task trains on and verifies with, wherever it comes from: three sets of faces that share nobody.

Splits people, never images of one person, except that images of training people may serve calibration where
there are too few people of a single image. This module must not know files or networks.
"""

import attrs
import torch
from torch import Tensor

from prunekit.errors import DataError
from prunekit.seeds import Seeds
from prunekit_deepid2plus.verification import Pairs, balanced_pairs, occurrences

LEAST_TRAIN_PEOPLE = 2
LEAST_TEST_PEOPLE = 4
"""Two folds of two people: with fewer there is no pair of two people, or no other fold for the threshold."""

LEAST_CALIBRATION_IMAGES = 200
"""With fewer samples the chance correlation of two neurons, 1/sqrt(samples), hides most real ones."""

TEST_SHARE = 4
"""One person in four verifies."""

CALIBRATION_SHARE = 5
"""One image in five of a training person, where calibration images must come from them."""


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

    def take(self, chosen: Tensor) -> "Faces":
        """Return the chosen images (numbers or booleans); people are numbered anew, in the same order."""
        return Faces(self.images[chosen], renumbered(self.people[chosen]))


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
        left_out: images that were expected but are missing or unreadable.
        ignored: what else was found and not used, in words.
    """

    train: Faces
    calibration: Faces
    test: Faces
    pairs: Pairs
    left_out: int = 0
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"train {self.train.person_count:,} people, {len(self.train):,} images; "
            f"calibration {len(self.calibration):,} images; "
            f"test {self.test.person_count:,} people, {len(self.pairs.same):,} pairs"
            + (f"; {self.left_out:,} image{'s' * (self.left_out > 1)} missing or unreadable" if self.left_out else "")
            + (f"; ignored: {', '.join(self.ignored)}" if self.ignored else "")
        )


def split_people(faces: Faces, seeds: Seeds) -> FaceData:
    """Split faces that come without a protocol.

    A quarter of the people with two images or more verify, the others train. People with one image are for
    calibration; where they are too few, one image in five of each training person joins them and trains nothing.

    Raises:
        DataError: with too few people who have two images.
    """
    counts = faces.people.bincount()
    several = (counts > 1).nonzero().flatten()
    tested = max(LEAST_TEST_PEOPLE, len(several) // TEST_SHARE)
    if len(several) < tested + LEAST_TRAIN_PEOPLE:
        raise DataError(
            f"{len(several)} of {len(counts)} people have two images or more, expected at least "
            f"{LEAST_TEST_PEOPLE + LEAST_TRAIN_PEOPLE}: {LEAST_TEST_PEOPLE} to verify and {LEAST_TRAIN_PEOPLE} "
            "to train on; add images"
        )
    several = several[torch.randperm(len(several), generator=seeds.generator("test people"))]
    test = faces.take(torch.isin(faces.people, several[:tested]))
    train = torch.isin(faces.people, several[tested:])
    train, calibration = with_calibration(faces.people, train, counts[faces.people] == 1)
    return FaceData(faces.take(train), faces.take(calibration), test, balanced_pairs(test.people, seeds))


def with_calibration(people: Tensor, train: Tensor, calibration: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images to train on and to calibrate with, bool ``[images]`` each.

    Where there are too few to calibrate with, every fifth image of a training person joins them and trains nothing;
    where nobody has five and there is no other, the training images serve both.
    """
    if int(calibration.sum()) >= LEAST_CALIBRATION_IMAGES:
        return train, calibration
    held = train & (occurrences(people) % CALIBRATION_SHARE == CALIBRATION_SHARE - 1)
    enough = bool((calibration | held).any())
    return train & ~held, (calibration | held) if enough else train
