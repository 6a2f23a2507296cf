import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.contracts.criterion import Observation
from prunekit.criteria.sparsegpt import SparseGpt, proportional_shares
from prunekit.errors import ConfigError, DataError, MaskError
from prunekit.layers.torch_views import core_view
from prunekit.masks.selection import Blocks, Channels, NofM, Quota, Units, kept_count

LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "tokens": (lambda: nn.Linear(12, 5), (3, 12)),
    "convolution": (lambda: nn.Conv2d(4, 5, 2, padding=1), (4, 3, 3)),
    "grouped": (lambda: nn.Conv2d(8, 6, (1, 2), groups=2), (8, 3, 4)),
}


def made(layer, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    make, shape = LAYERS[layer]
    view = core_view(make().to(dtype))
    # Inputs that depend on each other, so that there is something to repair.
    inputs = torch.randn(40, *shape, dtype=dtype)
    return view, inputs + inputs.roll(1, 1) + 0.5


def observed(view, batches, **options):
    criterion = SparseGpt(**options)
    for batch in batches:
        with torch.no_grad():
            criterion.observe(Observation(view, batch, batch, batch))
    return criterion


def chosen(view, batches, quota, **options):
    criterion = observed(view, batches, **options)
    weight = view.to_matrix(view.weight.detach())
    mask = criterion.select(criterion.score(weight, torch.Generator()), quota, torch.Generator())
    return mask, criterion.reconstruct(weight, mask)


def kept_of(scores, count, candidates):
    """Mark the best of a list of numbers, the earlier where equal."""
    places = [place for place in range(len(scores)) if candidates[place]]
    places.sort(key=lambda place: -scores[place])
    return set(places[:count])


def reference(weight, inputs, columns, counts, candidates, *, damping=0.01):
    """Algorithm 1 by its definition, one group: each column's inverse Hessian is that of the columns not yet done.

    ``columns`` are runs of places whose mask is chosen together, ``counts[run][row]`` what a row keeps, or with one
    number, what all rows together keep.
    """
    weight, order = weight.clone(), [column for run in columns for column in run]
    hessian = 2 * inputs.T @ inputs / len(inputs)
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(order), dtype=torch.float64)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    inverses = {column: hessian[order[at:]][:, order[at:]].inverse() for at, column in enumerate(order)}
    for run, count in zip(columns, counts, strict=True):
        pivots = torch.stack([inverses[column][0, 0] for column in run])
        scores, free = weight[:, run] ** 2 / pivots, candidates[:, run]
        keep = torch.zeros_like(free)
        if len(count) == 1:
            keep.view(-1)[list(kept_of(scores.flatten().tolist(), count[0], free.flatten().tolist()))] = True
        else:
            for row, number in enumerate(count):
                keep[row, list(kept_of(scores[row].tolist(), number, free[row].tolist()))] = True
        mask[:, run] = keep
        for column in run:
            inverse, behind = inverses[column], order[order.index(column) :]
            for row in range(len(weight)):
                if not mask[row, column]:
                    weight[row, behind] -= weight[row, column] / inverse[0, 0] * inverse[0]
                    weight[row, column] = 0
    return mask, weight


def unfolded(view, inputs):
    return view.inputs_at(inputs, slice(None)).flatten(1, 2)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("block", [1, 5, 128])
@pytest.mark.parametrize("scope", ["layer", "unit"])
@pytest.mark.parametrize("masked", [False, True])
def test_masks_and_repaired_weights_match_the_paper(layer, block, scope, masked):
    view, inputs = made(layer)
    weight = view.to_matrix(view.weight.detach())
    candidates = torch.ones_like(weight, dtype=torch.bool)
    if masked:
        candidates = torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) < 0.7
        with torch.no_grad():
            weight *= candidates
    quota = Quota(0.4, view.fan_shape, scope, candidates=candidates if masked else None)
    mask, repaired = chosen(view, list(inputs.split([13, 7, 20])), quota, block=block)
    assert int(mask.sum()) == kept_count(0.4, mask.numel())
    columns = [list(range(start, min(start + block, view.fan))) for start in range(0, view.fan, block)]
    for group in range(view.groups):
        # How many each block keeps is another test's matter.
        kept = [mask[group][:, run].sum(1).tolist() for run in columns]
        counts = kept if scope == "unit" else [[sum(row)] for row in kept]
        data = unfolded(view, inputs)[group]
        expected = reference(weight[group], data, columns, counts, candidates[group])
        assert torch.equal(mask[group], expected[0])
        torch.testing.assert_close(repaired[group], expected[1], rtol=1e-7, atol=1e-10)
    assert not repaired[~mask].any()
    assert not (mask & ~candidates).any()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4)])
def test_an_n_of_m_mask_is_chosen_when_its_first_column_is_reached(layer, n, m):
    view, inputs = made(layer)
    mask, repaired = chosen(view, [inputs], Quota(n / m, view.fan_shape, pattern=NofM(n, m)))
    channels, taps = view.fan_shape[0], view.fan // view.fan_shape[0]
    columns = [
        [channel * taps + tap for channel in range(first, first + m)]
        for tap in range(taps)
        for first in range(0, channels, m)
    ]
    for group, weight in enumerate(view.to_matrix(view.weight.detach())):
        counts = [[n] * view.outputs for _ in columns]
        everything = torch.ones_like(weight, dtype=torch.bool)
        expected = reference(weight, unfolded(view, inputs)[group], columns, counts, everything)
        assert torch.equal(mask[group], expected[0])
        torch.testing.assert_close(repaired[group], expected[1], rtol=1e-7, atol=1e-10)


def test_repair_reduces_the_change_of_the_output_under_the_same_mask():
    view, inputs = made("linear")
    mask, repaired = chosen(view, [inputs], Quota(0.5, view.fan_shape))
    weight = view.weight.detach()
    dense, unrepaired = inputs @ weight.T, inputs @ (weight * mask[0]).T
    assert (inputs @ repaired[0].T - dense).norm() < 0.9 * (unrepaired - dense).norm()


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(4)), st.sampled_from(["layer", "unit"]))
def test_the_order_of_batches_does_not_matter(order, scope):
    view, inputs = made("convolution", dtype=torch.float32)
    batches = inputs.split(10)
    quota = Quota(0.5, view.fan_shape, scope)
    mask, repaired = chosen(view, batches, quota, block=4)
    again, repaired_again = chosen(view, [batches[index] for index in order], quota, block=4)
    assert torch.equal(mask, again)
    torch.testing.assert_close(repaired_again, repaired, rtol=1e-5, atol=1e-7)
    assert repaired.dtype == torch.float32


@given(st.data())
def test_shares_add_up_and_are_proportional_within_their_room(data):
    room = torch.tensor(data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=9)))
    count = data.draw(st.integers(0, int(room.sum())))
    shares = proportional_shares(torch.tensor([count]), room[None])[0]
    assert int(shares.sum()) == count
    assert ((shares >= 0) & (shares <= room)).all()
    exact = room * count / max(int(room.sum()), 1)
    assert ((shares - exact).abs() < 1 + 1e-9).all()


def test_weights_of_dead_inputs_are_dropped_first_and_kept_ones_do_not_change():
    view, inputs = made("linear")
    inputs[:, 3:9] = 0
    mask, _ = chosen(view, [inputs], Quota(0.5, view.fan_shape))
    assert mask[0, :, [0, 1, 2, 9, 10, 11]].all()
    mask, repaired = chosen(view, [inputs], Quota(0.75, view.fan_shape))
    kept = mask[0][:, 3:9]
    assert kept.any()
    assert torch.equal(repaired[0][:, 3:9][kept], view.weight.detach()[:, 3:9][kept])


def test_a_full_mask_changes_no_weight():
    view, inputs = made("grouped")
    mask, repaired = chosen(view, [inputs], Quota(1.0, view.fan_shape))
    assert mask.all()
    assert torch.equal(repaired, view.to_matrix(view.weight.detach()))


def test_meaningless_requests_are_refused():
    view, inputs = made("linear")
    with pytest.raises(ConfigError, match="not with scope='global'"):
        SparseGpt().check("global", None)
    for pattern in (Blocks(1, 4), Units(), Channels()):
        with pytest.raises(ConfigError, match=f"selects column by column, so it cannot keep the pattern {pattern}"):
            SparseGpt().check("layer", pattern)
    with pytest.raises(DataError, match="criterion 'sparsegpt' observed no data"):
        SparseGpt().score(view.weight.detach()[None], torch.Generator())
    candidates = torch.ones(1, 5, 12, dtype=torch.bool)
    candidates[0, 2, :3] = False
    with pytest.raises(MaskError, match="needs 2 of every 4 neighbours"):
        chosen(view, [inputs], Quota(0.5, view.fan_shape, pattern=NofM(2, 4), candidates=candidates))
