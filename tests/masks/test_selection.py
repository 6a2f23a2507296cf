import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.errors import MaskError
from prunekit.masks.selection import (
    Blocks,
    Channels,
    NofM,
    Quota,
    keep_best,
    keep_best_global,
    kept_count,
    top_counts,
    unit_counts,
)

densities = st.floats(0, 1, exclude_min=True) | st.sampled_from([1 / 256, 1 / 3, 0.5, 1.0])


def stable_sort_reference(scores: Tensor, counts: list[int]) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, count in enumerate(counts):
        ranked = sorted(range(scores.shape[1]), key=lambda place: (-scores[row, place].item(), place))
        mask[row, ranked[:count]] = True
    return mask


@st.composite
def tied_scores(draw):
    units, fan = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    values = st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 0.5, 2.0])
    rows = draw(st.lists(st.lists(values, min_size=fan, max_size=fan), min_size=units, max_size=units))
    return torch.tensor(rows), draw(st.lists(st.integers(0, fan), min_size=units, max_size=units))


@settings(deadline=None)
@given(tied_scores())
def test_the_largest_scores_win_and_the_earlier_one_of_equals(case):
    scores, counts = case
    assert torch.equal(top_counts(scores, torch.tensor(counts)), stable_sort_reference(scores, counts))


@pytest.mark.parametrize(
    ("density", "total", "count"),
    [(0.5, 5, 3), (0.5, 3, 2), (1 / 3, 3, 1), (1 / 256, 786_432, 3072), (1.0, 7, 7), (1e-9, 10, 0), (0.1, 5, 1)],
)
def test_the_count_is_rounded_once_and_halves_up(density, total, count):
    assert kept_count(density, total) == count


@settings(deadline=None)
@given(count=st.integers(0, 10**12), extra=st.integers(0, 10**12))
def test_a_density_computed_from_a_count_gives_that_count(count, extra):
    total = count + extra + 1
    assert kept_count(count / total, total) == count


@settings(deadline=None)
@given(densities, st.integers(1, 60), st.integers(1, 40))
def test_units_share_the_count_evenly(density, units, fan):
    counts = unit_counts(density, units, fan)
    assert counts.sum() == kept_count(density, units * fan)
    assert counts.max() - counts.min() <= 1
    assert 0 <= counts.min() <= counts.max() <= fan


@settings(deadline=None)
@given(densities, densities, st.integers(1, 60), st.integers(1, 40))
def test_a_lower_density_gives_no_unit_more(one, other, units, fan):
    low, high = sorted([one, other])
    assert (unit_counts(low, units, fan) <= unit_counts(high, units, fan)).all()


@settings(deadline=None, max_examples=60)
@given(density=densities, scope=st.sampled_from(["unit", "layer"]), levels=st.integers(1, 50), seed=st.integers(0, 99))
def test_gradual_pruning_keeps_exact_counts_of_the_candidates(density, scope, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = None
    for step in (1.0, 0.7, 0.35):
        scores = torch.randint(levels, (2, 3, 7), generator=generator).float()
        before, mask = mask, keep_best(scores, Quota(density * step, (7,), scope, candidates=mask))
        assert mask.sum() == kept_count(density * step, 42)
        assert before is None or not (mask & ~before).any()
        if scope == "unit":
            assert torch.equal(mask.flatten(0, 1).sum(1), unit_counts(density * step, 6, 7))


def test_too_few_candidates_are_an_error():
    candidates = torch.zeros(1, 2, 4, dtype=torch.bool)
    candidates[0, 0] = True
    assert keep_best(torch.ones(1, 2, 4), Quota(0.5, (4,), "layer", candidates=candidates)).sum() == 4
    # A unit that has too few left hands its share on.
    assert keep_best(torch.ones(1, 2, 4), Quota(0.5, (4,), "unit", candidates=candidates))[0].sum(1).tolist() == [4, 0]
    with pytest.raises(MaskError, match="needs 6 connections, but only 4 are candidates"):
        keep_best(torch.ones(1, 2, 4), Quota(0.75, (4,), "unit", candidates=candidates))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 4)]), st.integers(0, 99))
def test_n_of_every_m_input_channels_are_kept_at_every_kernel_tap(pattern, seed):
    n, m = pattern
    scores = torch.randn(2, 3, 8 * 6, generator=torch.Generator().manual_seed(seed))
    mask = keep_best(scores, Quota(n / m, (8, 2, 3), pattern=NofM(n, m)))
    channels = mask.reshape(2, 3, 8 // m, m, 2, 3)
    assert (channels.sum(3) == n).all()
    values = scores.reshape(channels.shape)
    worst_kept = values.masked_fill(~channels, math.inf).amin(3)
    assert (values.masked_fill(channels, -math.inf).amax(3) <= worst_kept).all()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5), (8, 16), (5, 32)]),
    st.sampled_from([(1,), (2, 3)]),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_n_of_every_m_are_those_of_a_stable_sort_of_each_group(pattern, kernel, levels, seed):
    n, m = pattern
    generator = torch.Generator().manual_seed(seed)
    fan_shape = (2 * m, *kernel)
    scores = torch.randint(levels, (2, 3, math.prod(fan_shape)), generator=generator).float()
    mask = keep_best(scores, Quota(n / m, fan_shape, pattern=NofM(n, m)))
    groups = [
        values.reshape(2, 3, 2, m, -1).transpose(-1, -2).reshape(-1, m)  # kernel taps beside the groups
        for values in (scores, mask)
    ]
    assert torch.equal(groups[1], stable_sort_reference(groups[0], [n] * len(groups[0])))


def test_a_pattern_that_does_not_fit_is_an_error():
    with pytest.raises(MaskError, match="does not divide 6 input channels"):
        keep_best(torch.ones(1, 2, 6), Quota(0.5, (6,), pattern=NofM(2, 4)))
    with pytest.raises(MaskError, match=r"pattern 2:4 needs density 0\.5, but got 0\.25"):
        keep_best(torch.ones(1, 2, 8), Quota(0.25, (8,), pattern=NofM(2, 4)))
    with pytest.raises(MaskError, match="blocks of 2 x 4 do not divide a layer of 3 x 8"):
        keep_best(torch.ones(1, 3, 8), Quota(0.25, (8,), pattern=Blocks(2, 4)))
    with pytest.raises(MaskError, match="a single layer cannot select them"):
        keep_best(torch.rand(1, 4, 8), Quota(0.5, (8,), pattern=Channels()))


@pytest.mark.parametrize(("rows", "columns"), [(1, 12), (2, 3), (4, 1), (2, 12)])
@pytest.mark.parametrize("scope", ["unit", "layer"])
def test_blocks_are_kept_or_dropped_whole_by_their_sum(rows, columns, scope):
    scores = torch.rand(2, 4, 12, generator=torch.Generator().manual_seed(0))
    mask = keep_best(scores, Quota(0.5, (12,), scope, Blocks(rows, columns)))
    tiles = mask.reshape(2, 4 // rows, rows, 12 // columns, columns).transpose(2, 3).flatten(3)
    whole = tiles.all(3)
    assert torch.equal(whole, tiles.any(3))
    assert whole.sum() == kept_count(0.5, whole.numel())
    if scope == "layer":
        sums = scores.reshape(2, 4 // rows, rows, 12 // columns, columns).sum((2, 4))
        assert sums[whole].min() >= sums[~whole].max()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 99), st.data())
def test_global_competition_is_one_sort_of_all_layers(levels, seed, data):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.randint(levels, shape, generator=generator).float()
        for name, shape in {"a": (1, 3, 4), "b": (2, 2, 5), "c": (1, 1, 1)}.items()
    }
    count = data.draw(st.integers(0, 33))
    masks = keep_best_global(scores, count)
    flat = torch.cat([layer.flatten() for layer in scores.values()]).unsqueeze(0)
    expected = stable_sort_reference(flat, [count]).squeeze(0)
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), expected)
    assert all(masks[name].shape == scores[name].shape for name in scores)
