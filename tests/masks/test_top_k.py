import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.masks import top_k as ranking
from prunekit.masks.top_k import kth_largest, mark_best

pytestmark = pytest.mark.thorough

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def sort_reference(tensors: list[Tensor], count: int) -> list[Tensor]:
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
    best = flat.sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[best] = True
    parts = mask.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def check(tensors, count, **sizes):
    masks = mark_best(tensors, count, **sizes)
    expected = sort_reference(tensors, count)
    assert sum(int(mask.sum()) for mask in masks) == count
    assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))


SPECIAL = [-math.inf, math.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 6e4]
numbers = st.floats(-1, 1, width=16) | st.sampled_from(SPECIAL)


@st.composite
def values(draw):
    """Lists of up to 60 numbers: anything, few levels, rising, falling, periodic."""
    size, period = draw(st.integers(0, 60)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["any", "levels", "rising", "falling", "periodic"]))
    if kind == "any":
        return draw(st.lists(numbers, min_size=size, max_size=size))
    if kind == "levels":
        return draw(st.lists(st.sampled_from([-math.inf, 0.0, 1.0]), min_size=size, max_size=size))
    places = range(size)
    return [float({"rising": place, "falling": -place, "periodic": place % period}[kind]) for place in places]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(values(), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 3, 8, 1000]),
    st.sampled_from([1, 3, 7, 100]),
    st.data(),
)
def test_the_marks_equal_those_of_a_stable_sort(lists, dtype, sample, block, data):
    tensors = [torch.tensor(numbers, dtype=torch.float64).to(dtype) for numbers in lists]
    count = data.draw(st.integers(0, sum(tensor.numel() for tensor in tensors)))
    check(tensors, count, sample=sample, block=block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "periodic", "equal", "half dropped"])
def test_the_marks_of_large_tensors_equal_those_of_a_stable_sort(order, share, dtype):
    size = 300_000
    generator = torch.Generator().manual_seed(0)
    rising = torch.arange(size, dtype=torch.float64) / size
    tensor = {
        "random": torch.randn(size, generator=generator, dtype=torch.float64),
        "rising": rising,
        "falling": -rising,
        "periodic": torch.arange(size, dtype=torch.float64) % (size // ranking.SAMPLE),
        "equal": torch.full((size,), 0.5, dtype=torch.float64),
        "half dropped": torch.where(rising < 0.5, rising, -math.inf),
    }[order].to(dtype)
    check(list(tensor.split([1, 99_999, 0, 200_000])), round(share * size))


def test_a_misleading_sample_costs_passes_only(monkeypatch):
    passes = []
    look = ranking._Ranking._look
    monkeypatch.setattr(ranking._Ranking, "_look", lambda *bounds: passes.append(bounds[1:]) or look(*bounds))
    tensor = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(ranking._Ranking, "_bracket", lambda _: (2.0, 2.5))
    check([tensor], 5_000, sample=100)
    assert 1 < len(passes) < 40


def test_noncontiguous_tensors_and_mixed_dtypes_are_ranked():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(40, 30, generator=generator)
    check([whole.T[::2], whole[:7].bfloat16(), whole[3].double()], 300, sample=20, block=64)
    assert mark_best([], 0) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kth_largest_of_each_row_equals_that_of_a_sort(dtype):
    rows = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    for count in (1, 25, 50):
        assert torch.equal(kth_largest(rows, count), rows.sort(dim=1, descending=True).values[:, count - 1])


def test_a_pass_collects_only_what_fits_in_a_fraction_of_the_memory():
    size = 4 * ranking.SAMPLE
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0))
    search = ranking._Ranking([tensor], [torch.empty(size, dtype=torch.bool)], size // 2, 8192, 4096)
    found = search._look(-0.01, 0.01)
    assert 0 < found.inside == sum(map(len, found.places)) < search.most == 8192
    found = search._look(-math.inf, math.inf)
    assert (found.inside, found.values) == (size, [])
