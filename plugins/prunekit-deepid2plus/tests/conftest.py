import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from bin_sets import set_bytes
from PIL import Image

DATA = Path(os.environ.get("PRUNEKIT_DATA", Path(__file__).parents[4] / "shared" / "data"))


def _folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    return DATA / name


@pytest.fixture
def lfw() -> Path:
    return _folder("lfw")


@pytest.fixture
def orl() -> Path:
    return _folder("orl")


BinSet = tuple[list[bytes], list[bool]]


@pytest.fixture
def write_bin() -> Callable[..., BinSet]:
    """Return a function that writes a set: image i has shade i, every third pair is of one person."""

    def jpeg(shade: int) -> bytes:
        file = BytesIO()
        Image.new("RGB", (112, 112), (shade, shade, shade)).save(file, "JPEG")
        return file.getvalue()

    def write(path: Path, pairs: int = 20, protocol: int = 2) -> BinSet:
        content = [jpeg(shade) for shade in range(2 * pairs)], [number % 3 == 0 for number in range(pairs)]
        path.write_bytes(set_bytes(content, protocol))
        return content

    return write
