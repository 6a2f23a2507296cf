import os
from pathlib import Path

import pytest

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
