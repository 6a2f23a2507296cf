import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunekit_images.batches import PlainBatches, Scale, TrainingBatches, shifted
from prunekit_images.data import Images
from torch import Tensor

from prunekit.contracts.seeds import Seeds

SAME = Scale(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def make(count: int, size: int, epoch: int = 0, shift: int = 0) -> TrainingBatches:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 5, 4).contiguous()
    return TrainingBatches(Images(pixels, torch.arange(count)), SAME, size, shift, epoch, Seeds(1))


@given(st.integers(1, 60), st.integers(1, 20))
def test_an_epoch_shows_every_image_at_most_once_in_whole_batches(count: int, size: int) -> None:
    batches = make(count, size)
    shown = torch.cat([batches[index][1] for index in range(len(batches))])
    assert len(shown.unique()) == len(shown) == (count // size * size or count)
    for index in range(len(batches)):
        images, labels = batches[index]
        assert torch.equal(images[:, 0, 2, 2].long(), labels)
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_a_batch_depends_on_seeds_epoch_and_index_alone() -> None:
    one, again = make(40, 8, 2, shift=2), make(40, 8, 2, shift=2)
    one[0]
    assert all(torch.equal(first, second) for first, second in zip(one[3], again[3], strict=True))
    assert not torch.equal(one[3][1], make(40, 8, 3, shift=2)[3][1])
    assert not torch.equal(one[3][0], make(40, 8, 2)[3][0])


@given(st.integers(1, 12), st.integers(1, 5))
def test_the_parts_of_several_ranks_make_up_the_batch(size: int, ranks: int) -> None:
    batches = make(60, size, shift=2)
    parts = [batches.share(3, rank, ranks) for rank in range(ranks)]
    for number, whole in enumerate(batches[3]):
        assert torch.equal(torch.cat([part.batch[number] for part in parts]), whole)
    assert [part.share for part in parts] == [len(part.batch[1]) / size for part in parts]


def test_plain_batches_keep_order_and_show_all() -> None:
    images = make(11, 1).images
    batches = PlainBatches(images, SAME, 4)
    assert torch.cat([batches[index][1] for index in range(len(batches))]).tolist() == list(range(11))
    with pytest.raises(IndexError):
        batches[3]


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_normalised_images_have_mean_0_and_deviation_1_colour_by_colour(kind: torch.dtype) -> None:
    pixels = (torch.rand(1500, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 200).to(kind)
    pixels[:, 2] = 7
    values = Scale.of(pixels).apply(pixels)
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]))


def shifted_by_loops(image: Tensor, down: int, right: int) -> Tensor:
    result = torch.zeros_like(image)
    rows, columns = image.shape[1:]
    for row in range(rows):
        for column in range(columns):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                result[:, row, column] = image[:, row + down, column + right]
    return result


def test_every_image_is_moved_by_whole_pixels_and_all_moves_occur() -> None:
    images = torch.randint(1, 256, (400, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    seen = set()
    first = torch.randint(3, (2, len(images), 1), generator=torch.Generator().manual_seed(1))
    for image, result in zip(images, shifted(images, 1, first), strict=True):
        matches = [move for move in moves if torch.equal(shifted_by_loops(image, *move), result)]
        assert len(matches) == 1
        seen |= set(matches)
    assert seen == set(moves)
