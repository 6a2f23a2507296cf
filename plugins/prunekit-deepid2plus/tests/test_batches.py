import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunekit_deepid2plus.batches import (
    LEAST_BATCHES,
    Augmentation,
    BalancedBatches,
    PlainBatches,
    table_of,
    to_float,
)
from torch import Tensor

from prunekit.seeds import Seeds

STILL = Augmentation(shift=0, contrast=0, brightness=0)


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


def augmented_by_loops(image: Tensor, down: int, right: int, *, mirrored: bool) -> Tensor:
    height, width = image.shape[1:]
    result = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            from_row = min(max(row + down, 0), height - 1)
            from_column = min(max(column + right, 0), width - 1)
            result[:, row, column] = image[:, from_row, width - 1 - from_column if mirrored else from_column]
    return result


def test_augmentation_is_a_shift_and_perhaps_a_mirror() -> None:
    images = torch.randint(256, (30, 3, 8, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = Augmentation(shift=2, contrast=0, brightness=0).apply(images, torch.Generator().manual_seed(1))
    kinds = set()
    for image, result in zip(images, moved, strict=True):
        found = [
            (down, right, mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in (False, True)
            if torch.allclose(to_float(augmented_by_loops(image, down, right, mirrored=mirrored)), result, atol=1e-6)
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert len({mirrored for *_, mirrored in kinds}) == 2
    assert len({down for down, *_ in kinds}) == 5


def test_relighting_is_affine_for_each_image_and_within_its_bounds() -> None:
    images = torch.randint(256, (50, 3, 8, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lit = Augmentation(shift=0, contrast=0.2, brightness=0.1).apply(images, torch.Generator().manual_seed(1))
    for image, result in zip(to_float(images), lit, strict=True):
        scale = result.std() / image.std()
        assert 0.8 - 1e-4 <= float(scale) <= 1.2 + 1e-4
        assert abs(float(result.mean() - image.mean())) <= 0.1 + 1e-4


def test_plain_batches_are_the_images_in_order() -> None:
    images = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    batches = PlainBatches(images, torch.arange(7), 3)
    assert len(batches) == 3
    assert torch.equal(torch.cat([batches[i][1] for i in range(3)]), torch.arange(7))
    assert torch.equal(torch.cat([batches[i][0] for i in range(3)]), to_float(images))
