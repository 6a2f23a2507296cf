from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prunekit_images.digits import TRAIN
from prunekit_images.sources import read_images

from prunekit.errors import DataError


def test_without_data_there_are_the_digits_of_scikit_learn() -> None:
    train, test = read_images(None, None)
    assert (len(train), len(test)) == (TRAIN, 450)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert (int(train.pixels.min()), int(train.pixels.max())) == (0, 16)
    assert train.labels[:10].tolist() == list(range(10))


def test_each_kind_of_data_finds_its_reader(tmp_path: Path, arrays: Any, class_folders: Path, write_idx: Any) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, key in (("train", "train"), ("t10k", "test")):
        write_idx(folder / f"{part}-images-idx3-ubyte", arrays[f"x_{key}"])
        write_idx(folder / f"{part}-labels-idx1-ubyte", arrays[f"y_{key}"])
    counts = [tuple(map(len, read_images(path, None))) for path in (tmp_path / "a.npz", folder, class_folders)]
    assert counts == [(40, 10), (40, 10), (12, 4)]


def test_data_that_no_reader_takes_are_told_with_what_would_do(tmp_path: Path) -> None:
    hint = "give an .npz file, a folder of IDX files, or a folder with train"
    with pytest.raises(DataError, match=f"none does not exist; {hint}"):
        read_images(tmp_path / "none", None)
    with pytest.raises(DataError, match=f"has neither IDX files nor folders train and test; {hint}"):
        read_images(tmp_path, None)


def test_a_size_for_what_is_never_resized_is_refused() -> None:
    with pytest.raises(DataError, match="image_size is 32, but the digits is no folder of class folders"):
        read_images(None, 32)
