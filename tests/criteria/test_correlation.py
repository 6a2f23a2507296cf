import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.contracts.criterion import Observation
from prunekit.criteria.correlation import Correlation, keep_halves
from prunekit.errors import ConfigError, DataError, MaskError
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Blocks, Channels, NofM, Quota, unit_counts
from prunekit.pruning.evidence import Evidence
from prunekit.pruning.observing import observe

MODES = ["halves", "highest", "random"]


class LocallyConnected(nn.Module):
    """Three outputs at each place of a line, from windows of two places, each place with its own weights."""

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(places - 1, 3, channels * 2))

    def forward(self, lines: Tensor) -> Tensor:
        windows = lines.unfold(2, 2, 1).movedim(2, 0).flatten(2)  # [places - 1, samples, fan]
        return torch.einsum("gsf,gof->sog", windows, self.weight)


class LocalView(LayerView):
    kind = "local"

    def __init__(self, module: LocallyConnected) -> None:
        groups, outputs, fan = module.weight.shape
        super().__init__(module, groups, outputs, (fan // 2, 2))

    def positions(self, inputs: Tensor) -> int:
        return 1

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        return inputs.unfold(2, 2, 1).movedim(2, 0).flatten(2).unsqueeze(1)

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        return outputs.movedim(2, 0).unsqueeze(1)


def observed(criterion: Correlation, view: LayerView, inputs: Tensor, batches: list[int]) -> tuple[Tensor, int]:
    """Observe the batches in as many passes as the criterion needs, with the ReLU of the outputs as activations."""
    passes, more = 0, True
    with torch.no_grad():
        while more:
            for batch in inputs.split(batches):
                outputs = view.module(batch)
                criterion.observe(Observation(view, batch, outputs, outputs.relu()))
            more, passes = criterion.end_pass(), passes + 1
    return criterion.score(view.to_matrix(view.weight.detach()), torch.Generator()), passes


def reference(view: LayerView, inputs: Tensor, *, pre_activation: bool = False) -> Tensor:
    """Equations (1) and (2), one connection at a time, in double precision."""
    with torch.no_grad():
        outputs = view.module(inputs)
    a = view.outputs_at(outputs if pre_activation else outputs.relu(), slice(None)).double()
    b = view.inputs_at(inputs, slice(None)).double()
    scores = torch.zeros(view.groups, view.outputs, view.fan, dtype=torch.float64)
    for g, i, k in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        for m in range(a.shape[1]):
            x, y = a[g, m, :, i] - a[g, m, :, i].mean(), b[g, m, :, k] - b[g, m, :, k].mean()
            if a[g, m, :, i].unique().numel() > 1 and b[g, m, :, k].unique().numel() > 1:
                scores[g, i, k] += ((x * y).mean() / (x.square().mean() * y.square().mean()).sqrt()).abs()
    return scores


LAYERS = {
    "linear": (lambda: core_view(nn.Linear(5, 4)), (5,)),
    "tokens": (lambda: core_view(nn.Linear(5, 4)), (3, 5)),
    "convolution": (lambda: core_view(nn.Conv2d(2, 3, 3)), (2, 5, 4)),
    "padded, strided, grouped, dilated": (
        lambda: core_view(nn.Conv2d(4, 4, (3, 2), stride=(1, 2), padding=2, dilation=2, groups=2)),
        (4, 3, 4),
    ),
    "line": (lambda: core_view(nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular")), (2, 6)),
    "volume": (lambda: core_view(nn.Conv3d(1, 2, 2, padding=1)), (1, 2, 2, 2)),
    "local": (lambda: LocalView(LocallyConnected(2, 4)), (2, 4)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("layer", LAYERS)
@settings(deadline=None, max_examples=5)
@given(
    batches=st.lists(st.integers(1, 40), min_size=2, max_size=4).filter(lambda sizes: sum(sizes) > 9),
    memory=st.sampled_from([2.0, 0.0]),
    pre_activation=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_scores_match_the_paper_for_every_layer_type(layer, batches, memory, pre_activation, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make, shape = LAYERS[layer]
        view = make()
        inputs = torch.randn(sum(batches), *shape) + 3.0
    inputs[:, 0] = 0.25  # dead inputs
    with torch.no_grad():
        view.to_matrix(view.weight)[:, 0] = -1.0  # with positive inputs: a neuron that hardly ever fires
    scores, passes = observed(Correlation(memory=memory, pre_activation=pre_activation), view, inputs, batches)
    positions = view.positions(inputs)
    assert passes == (positions if memory == 0 else 1)
    assert scores.dtype == torch.float32
    error = (scores - reference(view, inputs, pre_activation=pre_activation)).abs().max()
    assert error < 1e-6 * max(1, positions)


def test_scores_do_not_depend_on_the_number_of_passes():
    view = core_view(nn.Conv2d(3, 4, 3, padding=1))
    inputs = torch.randn(20, 3, 6, 5)
    per_position = 8 * 4 * 27 / 0.75 / 2**30  # a quarter of the memory is for samples that wait
    whole, passes = observed(Correlation(), view, inputs, [13, 7])
    assert passes == 1
    for fitting, expected in ((1, 30), (7, 5), (29, 2), (30, 1)):
        scores, passes = observed(Correlation(memory=per_position * (fitting + 0.5)), view, inputs, [13, 7])
        assert passes == expected
        assert (scores - whole).abs().max() < 1e-6 * 30


def test_a_sample_of_positions_estimates_the_sum_over_all():
    view = core_view(nn.Conv2d(3, 4, 3, padding=1))
    inputs = torch.randn(50, 3, 9, 8) + 0.1 * torch.randn(50, 3, 1, 1)
    everything, _ = observed(Correlation(), view, inputs, [50])
    assert torch.equal(observed(Correlation(positions=72), view, inputs, [50])[0], everything)
    for memory, passes_expected in ((2.0, 1), (0.0, 20)):
        scores, passes = observed(Correlation(positions=20, memory=memory), view, inputs, [30, 20])
        assert passes == passes_expected
        again, _ = observed(Correlation(positions=20), view, inputs, [50])
        assert (scores - again).abs().max() < 1e-5
        assert (scores / everything).mean() == pytest.approx(1, abs=0.05)
        assert torch.corrcoef(torch.stack([scores.flatten(), everything.flatten()]))[0, 1] > 0.5


def test_a_bad_value_that_is_found_late_still_names_the_layer():
    network = nn.Sequential(nn.Linear(3, 2))

    def show():
        network(torch.tensor([[1.0, float("nan"), 0.0]]))
        yield 1.0

    evidence = Evidence(show)
    with pytest.raises(DataError, match="layer '0': 1 of 3 values are NaN or infinite in the inputs"):
        observe(network, find_layers(network), {"0": Correlation()}, {}, evidence)


@st.composite
def drawn_layers(draw):
    units, fan = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    coefficients = torch.randint(-levels, levels + 1, (units, fan), generator=generator) / levels
    coefficients *= torch.rand(units, 1, generator=generator) < draw(st.sampled_from([0.5, 1.0]))  # constant neurons
    density = draw(st.floats(0, 1, exclude_min=True) | st.sampled_from([0.5, 2 / 3, 1.0]))
    return coefficients.float(), density, draw(st.floats(0, 1)), generator


@settings(deadline=None, max_examples=200)
@given(drawn_layers())
def test_halves_keep_exact_counts_and_zeros_last(case):
    coefficients, density, strength, generator = case
    counts = unit_counts(density, *coefficients.shape)
    mask = keep_halves(coefficients, counts, strength, None, generator)
    assert torch.equal(mask.sum(1), counts)
    for row, kept in zip(coefficients, mask, strict=True):
        nonzero = int((row != 0).sum())
        assert int((kept & (row == 0)).sum()) == max(0, int(kept.sum()) - nonzero)
        if 0 < kept.sum() <= nonzero:
            share = int((row > 0).sum()) * int(kept.sum()) / nonzero
            assert abs(int((kept & (row > 0)).sum()) - share) < 1
    again = keep_halves(coefficients, counts // 2, strength, mask, generator)
    assert torch.equal(again.sum(1), counts // 2)
    assert not (again & ~mask).any()


@pytest.mark.thorough
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize(("positive", "negative", "count"), [(40, 40, 6), (31, 9, 7), (80, 0, 11), (7, 2, 1)])
def test_on_average_a_fraction_lambda_of_the_kept_is_from_the_stronger_half(strength, positive, negative, count):
    units, zeros = 40_000, 5
    row = torch.cat([torch.rand(positive) + 0.1, -torch.rand(negative) - 0.1, torch.zeros(zeros)])
    mask = keep_halves(
        row.repeat(units, 1), torch.full((units,), count), strength, None, torch.Generator().manual_seed(0)
    )
    chance = mask.double().mean(0)
    for sign, size in ((1, positive), (-1, negative)):
        ranked = chance[(sign * row).argsort(descending=True)[:size]]
        stronger, weaker = ranked[: (size + 1) // 2], ranked[(size + 1) // 2 :]
        wanted = count * size / (positive + negative)
        # Five deviations of a share whose rounding is worth at most one connection per unit.
        assert float(stronger.sum()) == pytest.approx(strength * wanted, abs=5 * 1.0 / units**0.5)
        assert float(weaker.sum()) == pytest.approx((1 - strength) * wanted, abs=5 * 1.0 / units**0.5)
        for half in (stronger, weaker):  # within a half all have the same chance
            assert half.numel() == 0 or float(half.max() - half.min()) < 10 * 0.5 / units**0.5
    assert chance[-zeros:].sum() == 0


def test_a_half_smaller_than_its_share_is_kept_whole():
    row = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3]])
    mask = keep_halves(row, torch.tensor([5]), 0.75, None, torch.Generator())
    assert mask[0, :3].all()
    assert mask.sum() == 5


def test_the_same_generator_draws_the_same_mask():
    coefficients = torch.randn(20, 50)
    counts = torch.full((20,), 10)
    draws = [keep_halves(coefficients, counts, 0.75, None, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_too_few_candidates_raise_an_error():
    candidates = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(MaskError, match="unit 1 must keep 2 connections but has only 1"):
        keep_halves(torch.ones(2, 3), torch.tensor([2, 2]), 0.75, candidates, torch.Generator())


@settings(deadline=None, max_examples=30)
@given(
    mode=st.sampled_from(MODES),
    layer=st.sampled_from(["linear", "convolution", "local"]),
    densities=st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=3),
    strength=st.floats(0, 1),
)
def test_every_mode_keeps_exact_counts_of_the_candidates(mode, layer, densities, strength):
    make, shape = LAYERS[layer]
    view = make()
    inputs = torch.randn(12, *shape)
    inputs[:, 0] = 0.0
    criterion = Correlation(mode=mode, strength=strength)
    scores, _ = observed(criterion, view, inputs, [12])
    mask = None
    for density in sorted(densities, reverse=True):
        quota = Quota(density, view.fan_shape, "unit", candidates=mask)
        before, mask = mask, criterion.select(scores, quota, torch.Generator().manual_seed(0))
        units = view.groups * view.outputs
        assert torch.equal(mask.flatten(0, 1).sum(1), unit_counts(density, units, view.fan))
        assert before is None or not (mask & ~before).any()


def test_coefficients_have_signs_with_one_position_only():
    inputs = torch.randn(200, 8)
    linear = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1, 1, 1, -1, -1, -1, -1]]))
    criterion = Correlation(pre_activation=True)
    scores, _ = observed(criterion, core_view(linear), inputs, [200])
    quota = Quota(0.5, (8,), "unit")
    for seed in range(10):
        mask = criterion.select(scores, quota, torch.Generator().manual_seed(seed))
        assert mask[0, 0, :4].sum() == 2
        assert mask[0, 0, 4:].sum() == 2


@pytest.mark.parametrize("mode", ["highest", "random"])
@pytest.mark.parametrize("pattern", [NofM(2, 4), Blocks(1, 4), None])
def test_highest_and_random_accept_patterns_and_scopes(mode, pattern):
    criterion = Correlation(mode=mode)
    scores, _ = observed(criterion, core_view(nn.Linear(8, 4)), torch.randn(30, 8), [30])
    mask = criterion.select(scores, Quota(0.5, (8,), "layer", pattern), torch.Generator().manual_seed(0))
    assert mask.sum() == 16
    if mode == "highest" and pattern is None:
        assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize(
    ("mode", "scope", "pattern", "message"),
    [
        ("halves", "layer", None, "scope='unit'"),
        ("halves", "global", None, "scope='unit'"),
        ("halves", "unit", NofM(2, 4), "mode='highest'"),
        ("random", "global", None, "criterion 'random'"),
        ("random", "layer", Channels(), "not with pattern 'channels'; use scope='layer' or criterion 'random'"),
    ],
)
def test_a_scope_or_pattern_unfit_for_the_mode_is_refused_with_the_next_step(mode, scope, pattern, message):
    with pytest.raises(ConfigError, match=message):
        Correlation(mode=mode).check(scope, pattern)


def test_bad_options_are_refused():
    for bad in ({"strength": 1.5}, {"mode": "best"}, {"memory": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Correlation(**bad)


def test_missing_data_and_changing_sizes_and_shapes_are_explained():
    with pytest.raises(DataError, match="calibration batches"):
        Correlation().score(torch.zeros(1, 2, 3), torch.Generator())
    view = core_view(nn.Conv2d(1, 2, 1))
    small, large = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 3, 3)
    criterion = Correlation()
    with torch.no_grad():
        criterion.observe(Observation(view, small, view.module(small), view.module(small)))
        with pytest.raises(DataError, match="9 positions in one batch and 4 in another"):
            criterion.observe(Observation(view, large, view.module(large), view.module(large)))
        with pytest.raises(ConfigError, match="before any pooling"):
            criterion.observe(Observation(view, small, view.module(small), torch.zeros(4, 2, 1, 1)))


def test_batches_without_samples_raise_an_error_instead_of_an_endless_loop() -> None:
    with pytest.raises(DataError, match="no samples to correlate"):
        observed(Correlation(memory=0), core_view(nn.Conv2d(1, 2, 3)), torch.zeros(0, 1, 5, 5), [0])
