import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bin_sets import PROTOCOLS, Tokens, set_bytes, text
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus import insightface
from prunekit_deepid2plus.insightface import read_bin, read_pairs

from prunekit.errors import DataError

SIZE = (28, 24)
WriteBin = Callable[..., tuple[list[bytes], list[bool]]]


def refusal(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_bin(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_set_of_every_protocol_is_read(tmp_path: Path, write_bin: WriteBin, protocol: int) -> None:
    written = write_bin(tmp_path / "set.bin", protocol=protocol)
    assert read_bin(tmp_path / "set.bin") == written


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_bytes_more_than_a_batch_of_them_and_the_same_twice_are_read(tmp_path: Path, protocol: int) -> None:
    twice = bytes(range(256))
    images = [twice if number % 2 else number.to_bytes(2, "big") + os.urandom(300) for number in range(2400)]
    same = [number % 7 < 3 for number in range(1200)]
    (tmp_path / "set.bin").write_bytes(set_bytes((images, same), protocol))
    assert read_bin(tmp_path / "set.bin") == (images, same)


@pytest.mark.parametrize("protocol", [1, 2])
def test_bytes_that_python_2_wrote_as_its_text_are_read(tmp_path: Path, protocol: int) -> None:
    images, same = [bytes([number, 255]) * (100 + 2 * number) for number in range(20)], [True, False] * 5
    data = b"\x80\x02]q\x01(" if protocol == 2 else b"(]q\x01("
    for image in images:
        data += b"T" + struct.pack("<i", len(image)) + image if len(image) > 255 else b"U" + bytes([len(image)]) + image
    data += b"e]q\x02("
    for value in same:
        data += (b"\x88" if value else b"\x89") if protocol == 2 else (b"I01\n" if value else b"I00\n")
    (tmp_path / "set.bin").write_bytes(data + b"e" + (b"\x86" if protocol == 2 else b"t") + b"q\x03.")
    assert read_bin(tmp_path / "set.bin") == (images, same)


def test_pairs_are_in_order_in_ten_folds_and_images_cropped_in_the_middle(tmp_path: Path, write_bin: WriteBin) -> None:
    _, same = write_bin(tmp_path / "set.bin", pairs=23)
    images, pairs = read_pairs(tmp_path / "set.bin", SIZE)
    assert images.shape == (46, 3, *SIZE)
    assert (images[:, 0, 0, 0].int() - torch.arange(46)).abs().max() <= 1
    assert torch.equal(torch.stack([pairs.first, pairs.second], 1).flatten(), torch.arange(46))
    assert pairs.same.tolist() == same
    assert pairs.fold.bincount().tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert pairs.fold.tolist() == sorted(pairs.fold.tolist())


def bomb(path: Path, protocol: int) -> Tokens:
    """Return tokens that make a folder when they are obeyed."""
    name = b"cposix\nmkdir\n" if protocol < 4 else b"\x8c\x05posix\x8c\x05mkdir\x93"
    return Tokens(name + b"(" + text(str(path), protocol) + b"tR")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_in_a_file_is_run(tmp_path: Path, protocol: int) -> None:
    images, same = [b"x"] * 20, [True, False] * 5
    message = refusal(
        tmp_path / "set.bin", set_bytes(([bomb(tmp_path / "mark", protocol), *images[1:]], same), protocol)
    )
    assert "is no .bin file of InsightFace, or a damaged one: it " in message
    assert "posix.mkdir" in message or "STACK_GLOBAL" in message or "SHORT_BINUNICODE" in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle exhausted"),
        (b"an image", "damaged one"),
        (b"\x80\x04](C\x011e.", "holds no pair of lists"),
        (b"\x80\x02K\x01K\x02\x86.", "it has BININT1, expected lists of bytes and booleans alone"),
        (set_bytes(([Tokens(b"I7\n")] * 20, [True, False] * 5), 0), "it has the number 7"),
        (set_bytes(([True] * 20, [True, False] * 5), 2), "holds other things than encoded images and booleans"),
        (set_bytes(([b"x"] * 20, [True] * 10), 4), "10 of one person"),
        (set_bytes(([b"x"] * 21, [True, False] * 5), 4), "has 21 images for 10 pairs"),
        (set_bytes(([b"x"] * 18, [True, False, True] * 3), 4), "has 18 images for 9 pairs"),
        (b"\x80\x02]q\x01(h\x01e.", "it uses a list or a text twice"),
        (b"\x80\x02X\x01\x00\x00\x00aq\x01h\x01.", "it uses a list or a text twice"),
        (b"\x80\x02]h\x07.", "damaged one: 7"),
        (b"\x80\x02(\x88\x88t\x88a.", "it appends to what is no list"),
        (b"\x80\x02\x88\x88\x86\x88R.", "it calls something"),
        (b"cos\nsystem\n.", "it names os.system"),
        (b"\x80\x02c_codecs\nencode\n\x88X\x04\x00\x00\x00utf8\x86R.", "it calls something"),
        (b"S'\\xff'\n.", "damaged one"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "damaged one"),
        (b"\x80\x02.", "damaged one"),
    ],
)
def test_what_is_no_such_set_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(tmp_path / "set.bin", data)


def test_a_missing_file_a_huge_one_and_too_many_images_are_refused(
    tmp_path: Path, write_bin: WriteBin, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "gone.bin")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    write_bin(tmp_path / "set.bin")
    monkeypatch.setattr(insightface, "_MOST_IMAGES", 38)
    assert "10 to 19 pairs" in refusal(tmp_path / "set.bin")
    monkeypatch.setattr(insightface, "_LIMIT", 100)
    assert "expected a .bin file of at most 100" in refusal(tmp_path / "set.bin")


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, write_bin: WriteBin) -> None:
    images, same = write_bin(tmp_path / "set.bin", pairs=10)
    images[4] = images[4][:100]
    (tmp_path / "set.bin").write_bytes(set_bytes((images, same), 4))
    with pytest.raises(DataError, match=r"1 image \(.*set.bin, image 5\) cannot be read .*; take the original file"):
        read_pairs(tmp_path / "set.bin", SIZE)


SMALL = [set_bytes(([bytes([n, 200]) for n in range(20)], [True, False] * 5), protocol) for protocol in PROTOCOLS]


@settings(deadline=None, max_examples=300)
@given(
    base=st.sampled_from(SMALL),
    cut=st.integers(0, 400),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_set_is_read_as_a_set_or_refused(
    base: bytes, cut: int, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(base)
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(data[: len(data) - cut] if cut < len(data) // 2 else data)
    try:
        images, same = read_bin(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most are refused, a few are still sets
    else:
        assert len(images) == 2 * len(same)


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    refusal(tmp_path_factory.getbasetemp() / "any.bin", data)
