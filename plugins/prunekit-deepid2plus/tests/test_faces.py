import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus import faces
from prunekit_deepid2plus.face_canvas import rgb, wave
from prunekit_deepid2plus.faces import draw_faces
from torch import Tensor

from prunekit.contracts.seeds import Seeds


def test_the_same_seeds_give_the_same_bytes() -> None:
    first, second = (draw_faces(3, 2, (28, 24), Seeds(5))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw_faces(3, 2, (28, 24), Seeds(6))[0])


@settings(deadline=None, max_examples=10)
@given(people=st.integers(1, 6), images=st.integers(1, 5), first=st.integers(0, 4), seed=st.integers(0, 2**40))
def test_an_image_depends_on_its_person_and_number_alone(people: int, images: int, first: int, seed: int) -> None:
    pictures, _ = draw_faces(people, images, (28, 24), Seeds(seed), first)
    all_pictures = draw_faces(10, 5, (28, 24), Seeds(seed))[0].view(10, 5, 3, 28, 24)
    assert torch.equal(pictures.view(people, images, 3, 28, 24), all_pictures[first : first + people, :images])


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_an_image_does_not_depend_on_how_many_are_drawn_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = draw_faces(4, 5, (56, 48), Seeds(0))
    monkeypatch.setattr(faces, "IMAGES_AT_ONCE", at_once)
    assert torch.equal(draw_faces(4, 5, (56, 48), Seeds(0))[0], expected)


def test_drawing_leaves_the_number_of_threads_and_the_global_generator_as_they_were() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    draw_faces(1, 1, (28, 24), Seeds(0))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(112, 96), (56, 48), (28, 24), (40, 64), (1, 1)])
def test_images_have_the_asked_size_and_come_with_person_numbers(size: tuple[int, int]) -> None:
    images, numbers = draw_faces(3, 2, size, Seeds(0), first_person=7)
    assert images.shape == (6, 3, *size)
    assert images.dtype == torch.uint8
    assert numbers.tolist() == [7, 7, 8, 8, 9, 9]
    assert numbers.dtype == torch.int64


@pytest.mark.parametrize(("people", "images"), [(0, 3), (3, 0)])
def test_no_people_or_no_images_is_an_empty_batch(people: int, images: int) -> None:
    pictures, numbers = draw_faces(people, images, (28, 24), Seeds(0))
    assert pictures.shape == (0, 3, 28, 24)
    assert numbers.shape == (0,)
    assert numbers.dtype == torch.int64


def test_a_face_looks_the_same_at_every_size() -> None:
    large = draw_faces(6, 2, (112, 96), Seeds(1))[0].float()
    small = draw_faces(6, 2, (56, 48), Seeds(1))[0].float()
    difference = (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean(dim=(1, 2, 3))
    assert difference.max() < 10  # of 255; noise, and outlines that are soft by a pixel


def test_images_use_the_range_of_values() -> None:
    images = draw_faces(20, 4, (56, 48), Seeds(0))[0].float()
    assert 70 < images.mean() < 160
    assert images.std() > 40
    assert (images.flatten(1).std(1) > 8).all()  # none is black, white or flat
    assert images.min() < 10
    assert images.max() > 245


def test_images_of_one_person_differ_but_less_than_images_of_two() -> None:
    people, count = 30, 8
    images = draw_faces(people, count, (28, 24), Seeds(2))[0].float().flatten(1)
    same, different = _mean_squares(images - images.mean(0), people, count)
    assert 0.5 * different < same < 0.98 * different


def test_variation_is_what_differs_between_images_of_one_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "VARIATION", 0.0)
    images = draw_faces(10, 3, (28, 24), Seeds(2))[0].float().flatten(1)
    same, different = _mean_squares(images, 10, 3)
    assert same < 0.02 * different  # noise alone


def test_pixels_alone_tell_little_about_who_it_is() -> None:
    people, unseen, count = 100, 50, 8
    pixels = draw_faces(people + unseen, count, (28, 24), Seeds(0))[0].float().flatten(1) / 255
    train, test = pixels[: people * count], pixels[people * count :] - pixels[: people * count].mean(0)
    _, scales, axes = torch.linalg.svd(train - train.mean(0), full_matrices=False)
    whitened = test @ axes[:100].T / scales[:100]
    assert 0.53 < _pair_accuracy(test, unseen, count) < 0.68
    assert 0.6 < _pair_accuracy(whitened, unseen, count) < 0.78


def test_standardised_numbers_have_mean_zero_and_variance_one_and_are_bounded() -> None:
    numbers = faces._bell(100_000, Seeds(0).generator("test"))
    assert abs(float(numbers.mean())) < 4 / math.sqrt(100_000)  # four standard errors
    assert abs(float(numbers.var()) - 1) < 0.03
    assert numbers.abs().max() <= 3


def test_names_of_a_person_and_of_an_image_are_distinct() -> None:
    assert not faces.IDENTITY.keys() & faces.IMAGE.keys()
    assert len(faces.IDENTITY) >= 30


def test_a_wave_is_a_triangle_of_period_one() -> None:
    positions = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, -0.5, 7.5])
    assert wave(positions).tolist() == [-1, 0, 1, 0, -1, 1, 1]


def test_a_colour_is_given_to_each_image_and_kept_in_range() -> None:
    colour = rgb(torch.tensor([0.5, 2.0]).view(2, 1, 1), 0.25, -1.0)
    torch.testing.assert_close(colour.view(2, 3), torch.tensor([[0.5, 0.25, 0.02], [1.0, 0.25, 0.02]]))


def _mean_squares(images: Tensor, people: int, count: int) -> tuple[float, float]:
    """Mean squared distance within people and between them."""
    person = torch.arange(people).repeat_interleave(count)
    same = (person[:, None] == person) & ~torch.eye(people * count, dtype=torch.bool)
    squares = torch.cdist(images, images).square()
    return float(squares[same].mean()), float(squares[person[:, None] != person].mean())


def _pair_accuracy(features: Tensor, people: int, count: int) -> float:
    """Best accuracy of one threshold on cosine similarity, the same and the different pairs weighing alike."""
    person = torch.arange(people).repeat_interleave(count)
    unit = torch.nn.functional.normalize(features, dim=1)
    first, second = torch.triu_indices(people * count, people * count, 1)
    similarity, same = (unit @ unit.T)[first, second], person[first] == person[second]
    order = similarity.argsort(descending=True)
    accepted = same[order].float().cumsum(0) / same.sum()
    wrongly = (~same[order]).float().cumsum(0) / (~same).sum()
    return float((0.5 + 0.5 * (accepted - wrongly)).max())
