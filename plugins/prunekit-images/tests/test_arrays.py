import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prunekit_images import arrays as module
from prunekit_images.arrays import read_npz

from prunekit.errors import DataError


def npy(array: Any, claimed: tuple[int, ...] | None = None) -> bytes:
    """Return an array as a file, with another shape in its header if one is claimed."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header | ({"shape": claimed} if claimed else {}))
    return file.getvalue() + array.tobytes()


def write(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_four_arrays_are_read_and_others_left_alone(tmp_path: Path, arrays: Any, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", **arrays, names=np.array([{"never": "loaded"}], object))
    train, test = read_npz(tmp_path / "a.npz")
    assert train.pixels.shape == (40, 1, 8, 6)
    assert test.pixels[:, 0, 3, 3].tolist() == list(range(40, 50))
    assert train.labels.tolist() == [number % 4 for number in range(40)]
    assert train.pixels.dtype == torch.uint8


def test_fortran_order_and_colours_are_read_as_they_are_meant(tmp_path: Path, arrays: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 8, 6, 3), np.uint8)
    arrays |= {"x_train": np.asfortranarray(image), "x_test": image[:10]}
    np.savez(tmp_path / "a.npz", **arrays)
    train, _ = read_npz(tmp_path / "a.npz")
    assert torch.equal(train.pixels, torch.from_numpy(image).permute(0, 3, 1, 2))


def test_an_absent_array_is_named_with_those_there_are(tmp_path: Path, arrays: Any) -> None:
    del arrays["y_test"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"a\.npz has no array 'y_test' but x_test, x_train, y_train; expected an npz"):
        read_npz(tmp_path / "a.npz")


def test_python_objects_are_refused_and_never_unpickled(tmp_path: Path, arrays: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", **arrays | {"y_test": np.array([Bomb()] * 10, object)})
    with pytest.raises(DataError, match=r"a\.npz: y_test holds Python objects, which are never loaded"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("claimed", [(10**6, 10**6), (40, 8, 7), (1,)])
def test_a_claimed_shape_is_checked_before_memory_is_taken(
    tmp_path: Path, arrays: Any, claimed: tuple[int, ...]
) -> None:
    members = {name: npy(array) for name, array in arrays.items()}
    write(tmp_path / "a.npz", members | {"x_train": npy(arrays["x_train"], claimed)})
    with pytest.raises(DataError, match=r"a\.npz is no npz file, or a damaged one: x_train\.npy claims"):
        read_npz(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused_by_its_size_before_it_is_unpacked(
    tmp_path: Path, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays | {"x_train": np.zeros((40, 500, 500), np.uint8)})
    monkeypatch.setattr(module, "MOST_BYTES", 1_000_000)
    monkeypatch.delattr(module, "_read")
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    with pytest.raises(DataError, match=r"a\.npz unpacks to 10,0\d\d,\d{3} bytes, expected at most 1,000,000"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz_file_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz is no npz file, or a damaged one.*expected an npz file with the"):
        read_npz(tmp_path / "a.npz")


def test_no_damage_of_a_byte_or_a_cut_gives_another_error(tmp_path: Path, arrays: Any) -> None:
    np.savez_compressed(tmp_path / "good.npz", **arrays)
    good = (tmp_path / "good.npz").read_bytes()
    generator = np.random.default_rng(0)
    errors = []
    for number in range(300):
        bad = bytearray(good)
        if number % 3:
            bad[generator.integers(len(good))] ^= 1 << generator.integers(8)
        else:
            del bad[generator.integers(len(good)) :]
        (tmp_path / "bad.npz").write_bytes(bad)
        try:
            read_npz(tmp_path / "bad.npz")
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 150
    assert all("bad.npz" in error and "\n" not in error for error in errors)


def test_mnist_has_its_images(mnist: Path) -> None:
    train, test = read_npz(mnist)
    assert (train.pixels.shape, test.pixels.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(train.pixels.float().mean()) == pytest.approx(33.3184, abs=1e-3)
