from io import BytesIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prunekit_deepid2plus.images import decode, named, reorder

from prunekit.errors import DataError


def png(shade: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (24, 28), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


@settings(deadline=None, max_examples=50)
@given(order=st.integers(0, 12).flatmap(lambda count: st.permutations(range(count))))
def test_reordering_in_place_is_indexing(order: list[int]) -> None:
    images = torch.arange(2 * len(order)).view(len(order), 2)
    expected = images[torch.tensor(order, dtype=torch.int64)]
    address = images.data_ptr()
    reorder(images, torch.tensor(order, dtype=torch.int64))
    assert torch.equal(images, expected)
    assert images.data_ptr() == address


def test_bytes_are_decoded_in_order_and_what_cannot_be_is_left_out_on_request() -> None:
    sources = [b"" if number in {0, 7, 8, 19} else png(number) for number in range(20)]
    images, kept = decode(sources, (28, 24), str, None)
    assert kept.tolist() == [bool(source) for source in sources]
    assert images[:, 0, 0, 0].tolist() == kept.nonzero().flatten().tolist()
    with pytest.raises(DataError, match=r"^4 images \(0, 7, 8, 19\) cannot be read \(the first: .*\); mend them$"):
        decode(sources, (28, 24), str, "mend them")


def test_nothing_is_decoded_to_nothing() -> None:
    images, kept = decode([], (28, 24), str, None)
    assert (images.shape, kept.shape) == ((0, 3, 28, 24), (0,))


def test_many_names_are_not_all_spelled_out() -> None:
    assert named(["a"]) == "1 image (a)"
    assert named(list("abcdefg")) == "7 images (a, b, c, d, e and 2 more)"
