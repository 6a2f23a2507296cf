from pathlib import Path

import pytest
import torch
from PIL import Image
from prunekit_images import decoding
from prunekit_images.folders import has_classes, read_class_folders

from prunekit.errors import DataError


def test_labels_are_the_sorted_classes_and_grey_stays_grey(class_folders: Path) -> None:
    assert has_classes(class_folders)
    train, test = read_class_folders(class_folders, None)
    assert train.pixels.shape == (12, 1, 8, 6)
    assert train.labels.tolist() == [0] * 6 + [1] * 6
    assert test.pixels[:, 0, 0, 0].tolist() == [0, 1, 100, 101]


def test_val_does_for_test_and_one_image_with_colours_makes_all_rgb(class_folders: Path) -> None:
    (class_folders / "test").rename(class_folders / "val")
    Image.new("RGB", (6, 8), (10, 20, 30)).save(class_folders / "train" / "cat" / "0.png")
    train, test = read_class_folders(class_folders, None)
    assert train.pixels[:2, :, 4, 4].tolist() == [[10, 20, 30], [1, 1, 1]]
    assert test.pixels.shape == (4, 3, 8, 6)


def test_images_of_many_sizes_need_a_size_and_are_brought_to_it(class_folders: Path) -> None:
    left = Image.new("L", (40, 20), 50)
    left.paste(200, (10, 0, 30, 20))  # the square in the middle
    left.save(class_folders / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"have 2 sizes, expected one size of at most 64 a side; .*image_size=32"):
        read_class_folders(class_folders, None)
    train, _ = read_class_folders(class_folders, 10)
    assert train.pixels.shape == (12, 1, 10, 10)
    # A pixel at an edge takes a little of its neighbour that is cut off.
    assert torch.equal(train.pixels[0, 0, :, 1:-1], torch.full((10, 8), 200, dtype=torch.uint8))


def test_large_images_need_a_size_even_if_they_all_have_one(class_folders: Path) -> None:
    for path in class_folders.glob("*/*/*.png"):
        Image.new("L", (300, 200)).save(path)
    with pytest.raises(DataError, match="have 200x300 pixels, expected one size of at most 64"):
        read_class_folders(class_folders, None)


def test_unreadable_images_are_named_together(class_folders: Path) -> None:
    (class_folders / "train" / "cat" / "0.png").write_bytes(b"no image")
    path = class_folders / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"1 image \(.*cat/0\.png\) cannot be read .*mend or remove"):
        read_class_folders(class_folders, None)
    Image.new("L", (6, 8)).save(class_folders / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"1 image \(.*dog/1\.png\) cannot be read"):
        read_class_folders(class_folders, None)


def test_an_image_that_claims_too_many_pixels_is_not_decoded(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MOST_PIXELS", 48)
    Image.new("L", (7, 7)).save(class_folders / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="claims 7 x 7 pixels, expected at most 48"):
        read_class_folders(class_folders, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no test", r"has no folder 'test'; expected train/CLASS/IMAGE"),
        ("no train", r"has no folder 'train'; expected train/CLASS/IMAGE"),
        ("empty part", r"train has no folder of a class; expected train/CLASS/IMAGE"),
        ("empty class", r"train/emu has no image; add some or remove the folder"),
        ("other class", r"test has a class 'emu' that .*train has not"),
    ],
)
def test_a_folder_that_lacks_something_is_told_by_name(class_folders: Path, change: str, message: str) -> None:
    if change == "empty class":
        (class_folders / "train" / "emu").mkdir()
        (class_folders / "train" / "emu" / "notes.txt").write_text("none")
    elif change == "other class":
        (class_folders / "test" / "dog").rename(class_folders / "test" / "emu")
    else:
        part = change.split()[1].replace("part", "train")
        (class_folders / part).rename(class_folders / "elsewhere")
        if change == "empty part":
            (class_folders / "train").mkdir()
    with pytest.raises(DataError, match=message):
        read_class_folders(class_folders, None)
