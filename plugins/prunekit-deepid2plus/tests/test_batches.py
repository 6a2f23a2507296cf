import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.batches import (
    LEAST_BATCHES,
    Augmentation,
    BalancedBatches,
    PlainBatches,
    resampled,
    table_of,
    to_float,
)
from torch import Tensor

from prunekit.contracts.seeds import Seeds

STILL = Augmentation(shift=0, turn=0, zoom=0, contrast=0, brightness=0, erased=0)


def make(
    counts: list[int], people: int, each: int, epoch: int = 0, augmentation: Augmentation = STILL
) -> BalancedBatches:
    """Every pixel of image i is i, so an image can be recognised."""
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(owners), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 6, 5).contiguous()
    return BalancedBatches(images, *table_of(owners), people, each, augmentation, epoch, Seeds(1))


def numbers(images: Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=20), st.integers(1, 5), st.integers(0, LEAST_BATCHES - 1))
def test_a_batch_has_as_many_different_images_of_each_person_as_there_are(
    counts: list[int], each: int, index: int
) -> None:
    images, people = make(counts, 3, each)[index]
    first = torch.tensor([0, *counts]).cumsum(0)
    shown = numbers(images)
    assert len(set(people.tolist())) == 3
    for person in set(people.tolist()):
        own = [number for number, owner in zip(shown, people.tolist(), strict=True) if owner == person]
        assert len(own) == each
        assert all(first[person] <= number < first[person + 1] for number in own)
        assert len(set(own)) == min(each, counts[person])


def test_a_batch_depends_on_seeds_epoch_and_index_alone() -> None:
    varied = Augmentation()
    batches, again = make([4] * 20, 5, 2, augmentation=varied), make([4] * 20, 5, 2, augmentation=varied)
    batches[0]
    assert all(torch.equal(one, other) for one, other in zip(batches[3], again[3], strict=True))
    assert not torch.equal(batches[3][0], batches[4][0])
    assert not torch.equal(batches[3][0], make([4] * 20, 5, 2, epoch=1, augmentation=varied)[3][0])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 4))
def test_the_parts_of_several_ranks_make_up_the_batch(each: int, ranks: int) -> None:
    batches = make([4] * 20, 5, each, augmentation=Augmentation())
    parts = [batches.share(3, rank, ranks) for rank in range(ranks)]
    for number, whole in enumerate(batches[3]):
        torch.testing.assert_close(torch.cat([part.batch[number] for part in parts]), whole, atol=1e-5, rtol=0)
    assert [part.share for part in parts] == [len(part.batch[1]) / (5 * each) for part in parts]


def test_people_come_in_proportion_to_the_root_of_their_images() -> None:
    batches = make([64, 16, 4], 1, 1)
    drawn = torch.stack([batches[index][1] for index in range(len(batches))])
    many = [
        BalancedBatches(batches.images, batches.table, batches.counts, 1, 1, STILL, epoch, Seeds(1))
        for epoch in range(20)
    ]
    drawn = torch.cat([epoch[index][1] for epoch in many for index in range(len(epoch))])
    shares = drawn.bincount() / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([8.0, 4.0, 2.0]) / 14, atol=0.04, rtol=0)


def test_an_epoch_shows_as_many_images_as_there_are_but_a_small_one_has_enough_batches() -> None:
    assert len(make([4] * 50, 5, 2)) == 20
    assert len(make([2] * 4, 4, 2)) == LEAST_BATCHES
    with pytest.raises(IndexError):
        make([2] * 4, 4, 2)[LEAST_BATCHES]


def resampled_by_loops(image: Tensor, transform: Tensor) -> Tensor:
    height, width = image.shape[1:]
    result = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            from_middle = image.new_tensor([column - (width - 1) / 2, row - (height - 1) / 2, 1])
            x, y = (transform @ from_middle).tolist()
            x = min(max(x + (width - 1) / 2, 0), width - 1)
            y = min(max(y + (height - 1) / 2, 0), height - 1)
            left, top = min(int(x), width - 2), min(int(y), height - 2)
            a, b = x - left, y - top
            upper = (1 - a) * image[:, top, left] + a * image[:, top, left + 1]
            lower = (1 - a) * image[:, top + 1, left] + a * image[:, top + 1, left + 1]
            result[:, row, column] = (1 - b) * upper + b * lower
    return result


def test_resampling_equals_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 8, 7, generator=generator)
    maps = torch.eye(2, 3) + 0.3 * torch.randn(6, 2, 3, generator=generator)
    maps[:, :, 2] *= 5
    pairs = zip(images.double(), maps.double(), strict=True)
    expected = torch.stack([resampled_by_loops(image, transform) for image, transform in pairs])
    torch.testing.assert_close(resampled(images, maps).double(), expected, atol=1e-4, rtol=1e-4)


def test_without_movement_half_of_the_images_are_mirrored_and_the_others_as_they_were() -> None:
    images = torch.randint(256, (40, 3, 8, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    results = STILL.apply(images, torch.Generator().manual_seed(1))
    same = torch.stack([torch.isclose(a, b, atol=1e-4).all() for a, b in zip(results, to_float(images), strict=True)])
    flipped = to_float(images[~same]).flip(3)
    torch.testing.assert_close(results[~same], flipped, atol=1e-4, rtol=0)
    assert 10 <= int(same.sum()) <= 30


def positions_of_a_square(augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Return what augmentation does to the middle (rows, columns, from the image's) and the area of a white square."""
    images = torch.zeros(200, 3, 41, 41, dtype=torch.uint8)
    images[:, :, 16:25, 16:25] = 255
    white = (augmentation.apply(images, torch.Generator().manual_seed(1))[:, 0] + 1) / 2
    area = white.sum((1, 2))
    from_middle = torch.arange(41) - 20.0
    rows, columns = (white.sum(2) * from_middle).sum(1) / area, (white.sum(1) * from_middle).sum(1) / area
    return torch.stack([rows, columns]), area


def test_shifts_are_spread_up_to_their_bound_along_both_sides() -> None:
    middles, area = positions_of_a_square(attrs.evolve(STILL, shift=3))
    torch.testing.assert_close(area, torch.full((200,), 81.0), atol=0.01, rtol=0)
    assert bool((middles.abs() <= 3.001).all())
    assert bool((middles.amax(1) > 2.8).all())
    assert bool((middles.amin(1) < -2.8).all())


def test_zoom_changes_the_area_up_to_twice_its_logarithm_and_turning_leaves_it() -> None:
    _, zoomed = positions_of_a_square(attrs.evolve(STILL, zoom=0.2))
    logarithms = (zoomed / 81).log()
    assert 0.35 < float(logarithms.abs().max()) <= 0.45  # 0.4, and what sampling adds
    middles, turned = positions_of_a_square(attrs.evolve(STILL, turn=30))
    torch.testing.assert_close(turned, torch.full((200,), 81.0), atol=0.5, rtol=0)
    torch.testing.assert_close(middles, torch.zeros(2, 200), atol=0.01, rtol=0)


def test_relighting_is_affine_for_each_image_and_within_its_bounds() -> None:
    images = torch.randint(256, (50, 3, 8, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lit = attrs.evolve(STILL, contrast=0.2, brightness=0.1).apply(images, torch.Generator().manual_seed(1))
    for image, result in zip(to_float(images), lit, strict=True):
        scale = result.std() / image.std()
        assert 0.8 - 1e-4 <= float(scale) <= 1.2 + 1e-4
        assert abs(float(result.mean() - image.mean())) <= 0.1 + 1e-4


def test_a_share_of_the_images_loses_a_rectangle_of_at_most_half_of_each_side() -> None:
    images = torch.full((400, 3, 40, 30), 255, dtype=torch.uint8)
    results = attrs.evolve(STILL, erased=0.5).apply(images, torch.Generator().manual_seed(1))
    grey = results.abs() < 1e-6
    assert torch.equal(grey, grey[:, :1].expand_as(grey))
    assert torch.equal(results[~grey], torch.ones(int((~grey).sum())))
    rows, columns = grey[:, 0].any(2), grey[:, 0].any(1)
    assert torch.equal(grey[:, 0], rows[:, :, None] & columns[:, None, :])
    erased = grey.flatten(1).any(1)
    assert 160 <= int(erased.sum()) <= 240
    assert 18 <= int(rows.sum(1).max()) <= 20
    assert 13 <= int(columns.sum(1).max()) <= 15
    assert bool((rows.int().diff(dim=1).abs().sum(1) <= 2).all())


def test_plain_batches_are_the_images_in_order() -> None:
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    batches = PlainBatches(images, torch.arange(7), 3)
    assert len(batches) == 3
    assert torch.equal(torch.cat([batches[i][1] for i in range(3)]), torch.arange(7))
    assert torch.equal(torch.cat([batches[i][0] for i in range(3)]), to_float(images))
