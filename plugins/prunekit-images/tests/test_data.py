from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunekit_images.data import Images, divide, labelled

from prunekit.contracts.seeds import Seeds
from prunekit.errors import DataError


def make(count: int, classes: int = 2, first: int = 0) -> Images:
    numbers = torch.arange(first, first + count)
    pixels = numbers.to(torch.float32)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Images(pixels, numbers % classes * 10 + 3)


@given(st.integers(20, 200), st.integers(1, 5), st.integers(0, 5), st.integers(0, 9))
def test_no_image_is_in_two_sets_and_none_is_lost(count: int, calibration: int, validation: int, seed: int) -> None:
    data = divide(make(count), make(7), Seeds(seed), calibration, validation, "data")
    sets = [data.train, data.calibration, data.validation]
    assert [len(images) for images in sets] == [count - calibration - validation, calibration, validation]
    assert sorted(torch.cat([images.pixels[:, 0, 0, 0] for images in sets]).tolist()) == list(range(count))
    assert data.classes == 2
    for images in (*sets, data.test):
        assert torch.equal(images.labels, images.pixels[:, 0, 0, 0].long() % 2)  # 3 and 13 became 0 and 1


def test_held_out_images_depend_on_their_seed_and_validation_on_nothing_else() -> None:
    def held(seed: int, calibration: int) -> list[float]:
        data = divide(make(50), make(5), Seeds(seed), calibration, 10, "data")
        return data.validation.pixels[:, 0, 0, 0].tolist()

    assert held(0, 5) == held(0, 20)
    assert held(0, 5) != held(1, 5)


def test_the_first_calibration_images_are_of_all_classes_even_of_a_sorted_file() -> None:
    images = make(1000)
    order = images.labels.argsort(stable=True)
    held = divide(images.take(order), make(5), Seeds(0), 100, 0, "data").calibration
    assert set(held.labels[:20].tolist()) == {0, 1}


def test_a_tenth_is_held_out_for_calibration_but_at_most_a_thousand() -> None:
    assert len(divide(make(95), make(5), Seeds(0), None, 0, "data").calibration) == 10
    assert len(divide(make(20_000), make(5), Seeds(0), None, 0, "data").calibration) == 1000


def test_sets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="data has 10 training images, too few to hold out 5 for calibration and 4"):
        divide(make(10), make(2), Seeds(0), 5, 4, "data")
    with pytest.raises(DataError, match="data: a test image has label 23, which no training image has"):
        divide(make(10), make(3, classes=3), Seeds(0), 1, 0, "data")
    with pytest.raises(DataError, match="data: all training labels are 3"):
        divide(make(10, classes=1), make(3, classes=1), Seeds(0), 1, 0, "data")
    test = Images(torch.zeros(2, 3, 2, 2), torch.tensor([3, 3]))
    with pytest.raises(DataError, match=r"training images are \(1, 2, 2\) torch.float32 .*test images \(3, 2, 2\)"):
        divide(make(10), test, Seeds(0), 1, 0, "data")


LABELS = np.zeros(4, np.uint8)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((4, 9), np.uint8), LABELS, r"images of shape \(4, 9\), expected \[images, rows, columns\]"),
        (np.zeros((4, 3, 9, 9), np.uint8), LABELS, r"images of shape \(4, 3, 9, 9\), expected .* 1 or 3 colours"),
        (np.zeros((0, 9, 9), np.uint8), LABELS[:0], "at least one image"),
        (np.zeros((4, 0, 9), np.uint8), LABELS, "images of 0x9 pixels"),
        (np.zeros((4, 600, 2), np.uint8), LABELS, "images of 600x2 pixels, expected 1 to 512 a side"),
        (np.zeros((4, 9, 9), np.int16) - 1, LABELS, "pixels of -1 to -1, expected bytes"),
        (np.full((4, 9, 9), 256), LABELS, "pixels of 256 to 256, expected bytes"),
        (np.full((4, 9, 9), np.nan), LABELS, "pixels that are infinite or no number"),
        (np.full((4, 9, 9), 1e300), LABELS, "pixels that are infinite or no number"),
        (np.zeros((4, 9, 9), complex), LABELS, "pixels of type complex128, expected bytes"),
        (np.zeros((4, 9, 9), "U3"), LABELS, "pixels of type <U3, expected bytes"),
        (np.zeros((4, 9, 9)), np.zeros((4, 10), int), r"labels of shape \(4, 10\) and type int64, expected one whole"),
        (np.zeros((4, 9, 9)), np.zeros(4), r"labels of shape \(4,\) and type float64, expected one whole"),
        (np.zeros((4, 9, 9)), LABELS[:3], "4 images but 3 labels"),
        (np.zeros((4, 9, 9)), np.full(4, -1), "labels of -1 to -1, expected 0 to"),
        (np.zeros((4, 9, 9)), np.full(4, 2**63, np.uint64), "labels of 9223372036854775808 to"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(pixels: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"file has .*{message}"):
        labelled(pixels, labels, "file")


def test_floats_stay_floats_and_whole_numbers_become_bytes() -> None:
    assert labelled(np.full((4, 9, 9), 0.5), LABELS[:, None], "file").pixels.dtype == torch.float32
    assert labelled(np.full((4, 9, 9), 255), LABELS, "file").pixels.dtype == torch.uint8
