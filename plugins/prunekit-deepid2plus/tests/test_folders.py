import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from prunekit_deepid2plus import data as data_module
from prunekit_deepid2plus.data import CALIBRATION_SHARE, Faces, split_people, with_calibration
from prunekit_deepid2plus.folders import read_folder
from prunekit_deepid2plus.images import read_image
from prunekit_deepid2plus.lfw import Protocol, read_protocol

from prunekit.contracts.seeds import Seeds
from prunekit.errors import DataError

SIZE = (28, 24)


def save(path: Path, shade: int, size: tuple[int, int] = (24, 28), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).convert(mode).save(path)


def make_people(folder: Path, counts: Mapping[str, int]) -> None:
    for shade, (name, count) in enumerate(counts.items()):
        for number in range(count):
            save(folder / name / f"{number}.png", shade)


def make_lfw(folder: Path, folds: int = 3) -> None:
    """Three people with two images and one with one, and a pair of each kind, in every fold."""
    people, pairs = [str(folds)], [f"{folds}\t1"]
    for fold in range(folds):
        names = [f"{letter}_{fold}" for letter in "ABC"]
        people += ["4", *(f"{name}\t2" for name in names), f"D_{fold}\t1"]
        pairs += [f"{names[0]}\t1\t2", f"{names[1]}\t1\t{names[2]}\t2"]
        for shade, name in enumerate(names):
            for number in (1, 2):
                save(folder / name / f"{name}_{number:04d}.png", 10 * fold + shade)
        save(folder / f"D_{fold}" / f"D_{fold}_0001.png", 10 * fold + 9)
    (folder / "people.txt").write_text("\n".join(people) + "\n")
    (folder / "pairs.txt").write_text("\n".join(pairs) + "\n")


def shades(faces: Faces) -> set[int]:
    return set(faces.images[:, 0, 0, 0].tolist())


def refusal(folder: Path, *test_folds: int) -> str:
    with pytest.raises(DataError) as caught:
        read_folder(folder, SIZE, Seeds(0), test_folds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_people_are_split_so_that_no_set_shares_anybody(tmp_path: Path) -> None:
    make_people(tmp_path, {f"p{n:03d}": 2 if n < 20 else 1 for n in range(240)})
    data = read_folder(tmp_path, SIZE, Seeds(0))
    assert (data.train.person_count, data.test.person_count, len(data.calibration)) == (15, 5, 220)
    assert shades(data.calibration) == set(range(20, 240))
    assert not shades(data.train) & shades(data.test)
    assert torch.equal(data.train.images, read_folder(tmp_path, SIZE, Seeds(0)).train.images)
    assert shades(data.test) != shades(read_folder(tmp_path, SIZE, Seeds(1)).test)


def test_training_people_lend_images_where_nobody_has_a_single_one(tmp_path: Path) -> None:
    make_people(tmp_path, {f"p{n}": 10 for n in range(12)})
    data = read_folder(tmp_path, SIZE, Seeds(0))
    assert shades(data.calibration) == shades(data.train)
    assert len(data.calibration) * (CALIBRATION_SHARE - 1) == len(data.train)
    assert not shades(data.calibration) & shades(data.test)


def test_of_many_images_no_more_than_needed_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    people = torch.arange(30).repeat_interleave(10)
    everybody, nobody = torch.ones(300, dtype=torch.bool), torch.zeros(300, dtype=torch.bool)
    train, lent = with_calibration(people, everybody, nobody)
    assert (int(train.sum()), int(lent.sum())) == (240, 60)
    monkeypatch.setattr(data_module, "MOST_LENT_IMAGES", 25)
    train, lent = with_calibration(people, everybody, nobody)
    assert (int(train.sum()), int(lent.sum())) == (280, 20)
    assert not (train & lent).any()


def test_no_more_people_verify_than_the_figures_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "MOST_TEST_PEOPLE", 6)
    people = torch.arange(40).repeat_interleave(2)
    data = split_people(Faces(torch.zeros(80, 3, 2, 2, dtype=torch.uint8), people), Seeds(0))
    assert (data.train.person_count, data.test.person_count) == (34, 6)


def test_the_sets_are_slices_of_one_tensor_and_every_image_keeps_its_person(tmp_path: Path) -> None:
    make_people(tmp_path, {f"p{n:03d}": 2 if n % 3 else 1 for n in range(240)})
    data = read_folder(tmp_path, SIZE, Seeds(0))
    sets = (data.train, data.calibration, data.test)
    assert len({part.images.untyped_storage().data_ptr() for part in sets}) == 1
    for part in sets:
        shade = part.images[:, 0, 0, 0].contiguous()
        assert shade.tolist() == sorted(shade.tolist())
        assert torch.equal(part.people, torch.searchsorted(torch.unique(shade), shade))


def test_where_everybody_has_two_images_the_training_set_serves_calibration_too() -> None:
    people = torch.arange(8).repeat_interleave(2)
    data = split_people(Faces(people[:, None, None, None].expand(-1, 3, 2, 2).byte(), people), Seeds(0))
    assert torch.equal(data.calibration.images, data.train.images)


def test_everybody_trains_where_the_pairs_come_from_elsewhere(tmp_path: Path, write_bin: Callable[..., object]) -> None:
    make_lfw(tmp_path / "lfw", folds=8)
    write_bin(tmp_path / "other.bin", pairs=12)
    data = read_folder(tmp_path / "lfw", SIZE, Seeds(0), verify_on=tmp_path / "other.bin")
    assert (data.train.person_count, len(data.calibration), len(data.test)) == (24, 8, 24)
    assert "test 24 images, 12 pairs" in str(data)
    alone = tmp_path / "alone"
    make_people(alone, {"a": 2, "b": 1})
    with pytest.raises(DataError, match="alone: 1 people have two images to train on, expected 2"):
        read_folder(alone, SIZE, Seeds(0), verify_on=tmp_path / "other.bin")


def test_the_last_folds_of_lfw_verify_and_nobody_in_them_is_trained_on(tmp_path: Path) -> None:
    make_lfw(tmp_path, folds=8)
    data = read_folder(tmp_path, SIZE, Seeds(0))
    assert {shade // 10 for shade in shades(data.train)} == set(range(6))
    assert {shade % 10 for shade in shades(data.train)} == {0, 1, 2}
    assert {shade // 10 for shade in shades(data.test)} == {6, 7}
    assert data.test_fold is not None
    assert data.test_fold.tolist() == [7] * 7 + [8] * 7
    assert torch.equal(data.test.images[:, 0, 0, 0] // 10 + 1, data.test_fold)
    assert not (shades(data.calibration) | shades(data.train)) & shades(data.test)
    assert data.pairs.fold.tolist() == [6, 6, 7, 7]
    assert data.pairs.same.tolist() == [True, False, True, False]
    pairs = data.test.images[torch.stack([data.pairs.first, data.pairs.second]), 0, 0, 0]
    assert pairs.T.tolist() == [[60, 60], [61, 62], [70, 70], [71, 72]]


def test_the_test_folds_can_be_chosen(tmp_path: Path) -> None:
    make_lfw(tmp_path, folds=4)
    data = read_folder(tmp_path, SIZE, Seeds(0), (1, 3))
    assert {shade // 10 for shade in shades(data.test)} == {0, 2}
    assert "expected at least two of 1 to 4" in refusal(tmp_path, 4, 5)
    assert "expected at least two of 1 to 4" in refusal(tmp_path, 1)


def test_images_of_another_aspect_are_cropped_in_the_centre_and_become_rgb(tmp_path: Path) -> None:
    wide = Image.new("L", (240, 28), 0)
    wide.paste(200, (108, 0, 132, 28))
    wide.save(tmp_path / "wide.pgm")
    face = read_image(tmp_path / "wide.pgm", SIZE)
    assert face.shape == (3, 28, 24)
    assert face.dtype == torch.uint8
    assert (face == 200).all()


def test_large_images_are_resized_with_antialiasing(tmp_path: Path) -> None:
    stripes = torch.zeros(280, 240, dtype=torch.uint8)
    stripes[:, ::2] = 200
    Image.frombytes("L", (240, 280), stripes.numpy().tobytes()).save(tmp_path / "stripes.png")
    face = read_image(tmp_path / "stripes.png", SIZE).float()
    assert face.sub(100).abs().max() < 25


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK", "1"])
def test_every_mode_of_pillow_is_read(tmp_path: Path, mode: str) -> None:
    save(tmp_path / "face.tiff", 255, mode=mode)
    assert (read_image(tmp_path / "face.tiff", SIZE) == 255).all()


def test_a_folder_that_cannot_serve_is_refused_with_its_name(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in refusal(tmp_path / "gone")
    assert "has no folder in it" in refusal(tmp_path)
    (tmp_path / "note.txt").write_text("hello")
    assert "is a file" in refusal(tmp_path / "note.txt")
    save(tmp_path / "train" / "someone" / "1.png", 3)
    assert "(but 1 images one folder too deep)" in refusal(tmp_path)
    assert f"expected one folder of images per person; give {tmp_path / 'train'}" in refusal(tmp_path)
    (tmp_path / "someone").mkdir()
    shutil.rmtree(tmp_path / "train")
    assert "has no image in its folders" in refusal(tmp_path)
    save(tmp_path / "someone" / "1.png", 3)
    assert "nobody of 1 people" in refusal(tmp_path)
    make_people(tmp_path, {f"p{n}": 2 for n in range(5)})
    assert "5 of 6 people have two images or more, expected at least 6" in refusal(tmp_path)
    assert "test_folds needs LFW's" in refusal(tmp_path, 1, 2)


def test_unreadable_images_are_all_counted_named_and_skipped_on_request(tmp_path: Path) -> None:
    make_people(tmp_path, {f"p{n}": 6 for n in range(8)})
    whole = (tmp_path / "p0" / "0.png").read_bytes()
    (tmp_path / "p0" / "0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p1" / "1.png").write_text("no image")
    (tmp_path / "p2" / "2.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "3 images" in message
    assert "(the first: no image that Pillow knows" in message
    assert "-o task.skip_unreadable=true" in message
    assert all(name in message for name in ("p0/0.png", "p1/1.png", "p2/2.png", "skip_unreadable=true"))
    data = read_folder(tmp_path, SIZE, Seeds(0), skip_unreadable=True)
    assert len(data.train) + len(data.calibration) + len(data.test) == 45
    assert "3 images missing or unreadable" in str(data)


def test_what_is_no_image_of_a_person_is_counted_and_suffixes_are_not_needed(tmp_path: Path) -> None:
    make_people(tmp_path, {f"p{n}": 6 for n in range(8)})
    (tmp_path / "p0" / "0.png").rename(tmp_path / "p0" / "zero")
    (tmp_path / "p1" / "notes").write_text("no image")
    (tmp_path / "p1" / "face.xyz").write_text("no image")
    save(tmp_path / "p2" / "old" / "0.png", 3)
    (tmp_path / "a_link").symlink_to(tmp_path / "p3")
    data = read_folder(tmp_path, SIZE, Seeds(0))
    assert len(data.train) + len(data.calibration) + len(data.test) == 48
    assert str(data).endswith(
        "; ignored: 2 files that are no images, 1 images one folder too deep, 1 links to folders of the same people"
    )


def test_a_folder_whose_name_is_too_long_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read: File name too long" in refusal(tmp_path / ("a" * 300))


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.new("L", (28, 24), 0)
    image.paste(200, (0, 0, 14, 24))  # the left half becomes the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "face.png", exif=exif)
    face = read_image(tmp_path / "face.png", SIZE)
    assert (face[:, :14] == 200).all()
    assert (face[:, 14:] == 0).all()


def test_only_unreadable_images_are_refused_even_when_skipped(tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.jpg").write_text("no image")
    with pytest.raises(DataError, match="expected at least 6"):
        read_folder(tmp_path, SIZE, Seeds(0), skip_unreadable=True)


def test_many_unreadable_images_are_not_all_spelled_out(tmp_path: Path) -> None:
    make_people(tmp_path, {"a": 9, "b": 9})
    for path in tmp_path.glob("a/*.png"):
        path.write_text("no image")
    assert "and 4 more" in refusal(tmp_path)


def test_images_that_pairs_name_must_be_there_and_other_missing_ones_are_counted(tmp_path: Path) -> None:
    make_lfw(tmp_path)
    (tmp_path / "D_0" / "D_0_0001.png").unlink()
    assert "1 image missing" in str(read_folder(tmp_path, SIZE, Seeds(0)))
    (tmp_path / "A_2" / "A_2_0002.png").unlink()
    assert "lacks 1 image (A_2/A_2_0002) that pairs.txt names" in refusal(tmp_path)


def test_blank_lines_of_a_protocol_are_skipped_but_counted(tmp_path: Path) -> None:
    make_lfw(tmp_path)
    path = tmp_path / "pairs.txt"
    path.write_text("\n" + path.read_text() + "\n\n")
    assert len(read_protocol(tmp_path).pairs) == 6
    path.write_text(path.read_text() + "more\n")
    assert "line 11: found 'more', expected the end of the file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("people.txt", "3\n4\n", "three\n4\n", "line 1: found 'three', expected the number of folds"),
        ("people.txt", "A_0\t2", "A_0 two", "line 3: found 'two', expected a number of images"),
        ("people.txt", "A_0\t2\n", "", "line 6: found '4', expected a name and a number of images"),
        ("people.txt", "B_0\t2", "A_0\t2", "line 4: found 'A_0', expected a name that did not come before"),
        ("people.txt", "D_2\t1\n", "D_2\t1\nE\t1\n", "line 17: found 'E 1', expected the end of the file"),
        ("pairs.txt", "3\t1\n", "3\n", "line 1: found '3', expected folds and pairs of each kind"),
        ("pairs.txt", "A_0\t1\t2\n", "A_0\t1\t2\t3\t4\n", "line 2: found 'A_0 1 2 3 4'"),
        ("pairs.txt", "A_0\t1\t2", "A_0\t1\t-2", "line 2: found '-2', expected an image number"),
        ("pairs.txt", "B_2\t1\tC_2\t2\n", "", "line 7: found nothing, expected two names"),
        ("pairs.txt", "A_0\t1\t2", "Nobody\t1\t2", "names 'Nobody', who is not in people.txt"),
        ("pairs.txt", "A_0\t1\t2", "A_1\t1\t2", "has 'A_1' in fold 1, people.txt in fold 2"),
        ("pairs.txt", "A_0\t1\t2", "A_0\t1\t3", "names image 3 of 'A_0', who has 2"),
    ],
)
def test_a_malformed_protocol_is_refused_with_its_line(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    make_lfw(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert message in refusal(tmp_path)


def test_one_protocol_file_without_the_other_is_refused(tmp_path: Path) -> None:
    make_lfw(tmp_path)
    (tmp_path / "people.txt").unlink()
    assert "people.txt is missing" in refusal(tmp_path)


def test_the_protocol_of_lfw_is_read(lfw: Path) -> None:
    protocol: Protocol = read_protocol(lfw)
    assert protocol.folds == 8
    assert len(protocol.pairs) == 8 * 600
    assert sum(pair.same for pair in protocol.pairs) == 8 * 300


def test_orl_is_a_folder_like_any(orl: Path) -> None:
    data = read_folder(orl, SIZE, Seeds(0))
    assert (data.train.person_count, data.test.person_count) == (30, 10)
    assert (len(data.train), len(data.calibration), len(data.test)) == (240, 60, 100)
    assert len(torch.unique(data.pairs.fold)) == 5
