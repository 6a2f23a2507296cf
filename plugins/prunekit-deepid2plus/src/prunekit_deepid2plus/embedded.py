"""The data that comes with the package: drawn people, divided into training, calibration and test.

How many of each is here, how a face is drawn is not.
"""

import attrs

from prunekit.contracts.seeds import Seeds
from prunekit_deepid2plus.data import FaceData, Faces
from prunekit_deepid2plus.faces import draw_faces
from prunekit_deepid2plus.pairs import balanced_pairs


@attrs.frozen
class Group:
    """Some drawn people.

    Attributes:
        first: number of the first; groups are far apart, so that one can grow and the others stay as they are.
        people: how many.
        each: images of one.
    """

    first: int
    people: int
    each: int

    def draw(self, size: tuple[int, int], seeds: Seeds) -> Faces:
        """Return the faces at a size in rows and columns."""
        images, numbers = draw_faces(self.people, self.each, size, seeds, self.first)
        return Faces(images, numbers - self.first)


# Sized for two CPU cores: drawing all takes less than half a minute.
TRAIN = Group(0, 200, 8)
CALIBRATION = Group(100_000, 320, 1)
TEST = Group(200_000, 100, 5)
PAIRS = 100
"""Most pairs of each kind in each of the ten folds; ten people with five images have 100 of one person."""

DESCRIPTION = (
    f"drawn faces: train {TRAIN.people:,} people, {TRAIN.people * TRAIN.each:,} images; "
    f"calibration {CALIBRATION.people * CALIBRATION.each:,} images; test {TEST.people:,} people"
)


def embedded_data(size: tuple[int, int], seeds: Seeds) -> FaceData:
    """Draw the three groups and choose the pairs."""
    test = TEST.draw(size, seeds)
    pairs = balanced_pairs(test.people, seeds, most=PAIRS)
    return FaceData(TRAIN.draw(size, seeds), CALIBRATION.draw(size, seeds), test, pairs)
