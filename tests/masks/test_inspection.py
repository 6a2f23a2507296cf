import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.masks.inspection import empty_lines, find_pattern
from prunekit.masks.selection import Blocks, NofM, Quota, Units, keep_best


def chosen(pattern: NofM | Blocks, density: float) -> torch.Tensor:
    torch.manual_seed(0)
    return keep_best(torch.rand(1, 32, 64), Quota(density, (64,), pattern=pattern))[0]


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4), NofM(1, 2), NofM(4, 8), NofM(3, 16)])
def test_n_of_m_selections_are_found(pattern: NofM) -> None:
    assert find_pattern(chosen(pattern, pattern.n / pattern.m)) == f"{pattern.n}:{pattern.m}"


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (1, 8), (16, 1), (2, 32)])
def test_block_selections_are_found(rows: int, columns: int) -> None:
    assert find_pattern(chosen(Blocks(rows, columns), 0.25)) == f"blocks {rows}x{columns}"


def test_whole_rows_and_columns_are_found() -> None:
    mask = torch.zeros(4, 3, 5, dtype=torch.bool)
    mask[1:3] = True
    assert find_pattern(mask) == "rows"
    assert empty_lines(mask) == (2, 0)
    assert find_pattern(mask.reshape(4, 15).T) == "columns"
    assert empty_lines(mask.reshape(4, 15).T) == (0, 2)


@settings(deadline=None, max_examples=100)
@given(shape=st.lists(st.integers(0, 6), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_any_mask_has_a_pattern_or_none_and_its_empty_lines_are_those_of_a_loop(
    shape: tuple[int, ...], seed: int
) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    find_pattern(mask)
    if mask.dim() == 2 and mask.numel():
        rows = sum(not any(row) for row in mask.tolist())
        columns = sum(not any(column) for column in mask.T.tolist())
        assert empty_lines(mask) == (rows, columns)


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_that_keeps_all_or_nothing_has_no_pattern(value: bool) -> None:
    assert find_pattern(torch.full((8, 8), value)) is None


def test_a_mask_of_biases_has_no_pattern() -> None:
    assert find_pattern(torch.tensor([True, False] * 8)) is None


def test_a_random_mask_has_no_pattern() -> None:
    torch.manual_seed(0)
    assert find_pattern(torch.rand(32, 64) < 0.5) is None


def test_whole_units_are_rows_in_a_linear_layer_and_filters_of_a_convolution() -> None:
    for fan_shape in ((12,), (3, 2, 2)):
        scores = torch.rand(1, 8, 12, generator=torch.Generator().manual_seed(0))
        mask = keep_best(scores, Quota(0.5, fan_shape, pattern=Units()))[0].reshape(8, *fan_shape)
        assert find_pattern(mask) == "rows"


def test_groups_of_a_convolution_are_found_along_its_input_channels() -> None:
    scores = torch.rand(1, 8, 8 * 9, generator=torch.Generator().manual_seed(0))
    mask = keep_best(scores, Quota(0.25, (8, 3, 3), pattern=NofM(1, 4)))[0].reshape(8, 8, 3, 3)
    assert find_pattern(mask) == "1:4"
