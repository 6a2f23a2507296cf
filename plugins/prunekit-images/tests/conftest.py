from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def arrays() -> Arrays:
    """Forty training and ten test images of 8x6, of four classes; every pixel of image i is i."""
    numbers = np.arange(50, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (50, 8, 6)).copy()
    labels = numbers % 4
    return {"x_train": images[:40], "y_train": labels[:40], "x_test": images[40:], "y_test": labels[40:]}


@pytest.fixture
def write_idx() -> Callable[[Path, npt.NDArray[np.uint8]], bytes]:
    """Return a function that writes an IDX file and returns what is in it."""

    def write(path: Path, array: npt.NDArray[np.uint8]) -> bytes:
        content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        path.write_bytes(content)
        return content

    return write


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Two classes of grey PNGs of 8x6, six to train and two to test each."""
    for part, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("L", (6, 8), 100 * number + index).save(folder / f"{index}.png")
    return tmp_path / "data"
