"""The data where none is given: the digits that come with scikit-learn, 1,797 grey images of 8x8 pixels.

This module must not know what becomes of the images.
"""

import numpy as np

from prunekit_images.data import Images, labelled

TRAIN = 1347
"""The first three quarters train, the others test: neighbours in the file were written by the same hand."""


def read_digits() -> tuple[Images, Images]:
    """Return training and test images; pixels are 0 to 16."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8).astype(np.uint8)
    train, test = (labelled(images[part], labels[part], "digits") for part in (slice(TRAIN), slice(TRAIN, None)))
    return train, test
