import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prunekit_images.idx import has_idx, read_idx, read_idx_folder

from prunekit.errors import DataError

Write = Callable[..., bytes]
FILES = {
    "train-images-idx3-ubyte": "x_train",
    "train-labels-idx1-ubyte": "y_train",
    "t10k-images-idx3-ubyte": "x_test",
    "t10k-labels-idx1-ubyte": "y_test",
}


@pytest.fixture
def folder(tmp_path: Path, arrays: Any, write_idx: Write) -> Path:
    for file, key in FILES.items():
        write_idx(tmp_path / file, arrays[key])
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
def test_the_four_files_are_read_packed_or_not(folder: Path, arrays: Any, packed: bool, dot: str) -> None:
    for file in FILES:
        path = (folder / file).rename(folder / file.replace("-idx", f"{dot}idx"))
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    assert has_idx(folder)
    train, test = read_idx_folder(folder)
    assert torch.equal(train.pixels[:, 0], torch.from_numpy(arrays["x_train"]))
    assert torch.equal(test.labels, torch.from_numpy(arrays["y_test"]).long())


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte, packed with gzip or not; add it"):
        read_idx_folder(folder)
    assert not has_idx(folder.parent)


def test_images_and_labels_of_different_counts_are_refused(folder: Path, write_idx: Write) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(39, np.uint8))
    with pytest.raises(DataError, match="train, has 40 images but 39 labels, expected one label an image"):
        read_idx_folder(folder)


def header(*lengths: int, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(lengths))) + np.array(lengths, ">u4").tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing, expected 00 00 08 03"),
        (b"\x89PNG\r\n\x1a\n", "begins with 89 50 4e 47, expected 00 00 08 03"),
        (header(1, 1, 1, kind=0x0D) + bytes(4), "begins with 00 00 0d 03"),
        (header(4) + bytes(4), "begins with 00 00 08 01"),
        (header(1, 1, 1)[:9], "ends within its header"),
        (header(10**4, 10**4, 10**4), "claims 10000 x 10000 x 10000 = 1,000,000,000,000 bytes, expected at most"),
        (header(2, 3, 3) + bytes(17), "claims 18 bytes of data but has 17"),
        (header(2, 3, 3) + bytes(20), "claims 18 bytes of data but has more"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_told_by_name_with_what_is_wrong(
    tmp_path: Path, content: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / f"images{'.gz' * packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} {message}.*; take the original file"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(header(2, 3, 3) + bytes(18), mtime=0)[:-9]],
    ids=["empty", "other", "cut"],
)
def test_a_damaged_gzip_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.gz"):
        read_idx(path, 3)


def test_no_damage_of_a_packed_byte_gives_another_error(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(18)
    good = gzip.compress(header(2, 3, 3) + content, mtime=0)
    path = tmp_path / "images.gz"
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            assert read_idx(path, 3).tobytes() == content
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - some bytes of a header mean nothing
