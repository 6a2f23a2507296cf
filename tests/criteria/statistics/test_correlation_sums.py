import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.criteria.statistics import products
from prunekit.criteria.statistics.correlation_sums import CorrelationSums
from prunekit.criteria.statistics.products import runs
from prunekit.errors import DataError

pytestmark = pytest.mark.thorough


def two_pass(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Equation (1) of the paper, column by column in double precision."""
    result = torch.zeros(*inputs.shape[:2], outputs.shape[3], inputs.shape[3], dtype=torch.float64)
    for group, position, out, fan in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        a = outputs[group, position, :, out].double()
        b = inputs[group, position, :, fan].double()
        a, b = a / a.abs().max(), b / b.abs().max()
        a, b = a - a.mean(), b - b.mean()
        result[group, position, out, fan] = (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()
    return result


def streamed(inputs: Tensor, outputs: Tensor, batches: list[int]) -> Tensor:
    """Take ``[groups, positions, samples, ...]`` batch by batch."""
    sums = CorrelationSums()
    for below, above in zip(inputs.split(batches, 2), outputs.split(batches, 2), strict=True):
        sums.update(below.flatten(0, 1), above.flatten(0, 1))
    return sums.correlation().unflatten(0, inputs.shape[:2])


def related(samples: int, mean: float, deviation: float, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(2, 3, samples, 5, generator=generator, dtype=torch.float64)
    mix = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64) / 2
    other = base @ mix
    other[..., 0] = -base[..., 0]
    return ((base + mean) * deviation).to(dtype), ((other - mean) * deviation).to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    batches=st.lists(st.integers(0, 90), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 2),
    mean=st.sampled_from([0.0, 1.0, 1e2, 1e4]),
    deviation=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
    seed=st.integers(0, 2**20),
)
def test_uneven_batches_in_single_precision_match_two_passes_in_double(batches, mean, deviation, seed):
    inputs, outputs = related(sum(batches), mean, deviation, seed, torch.float32)
    expected = two_pass(inputs, outputs)
    assert (streamed(inputs, outputs, batches) - expected).abs().max() <= 1e-7


@pytest.mark.parametrize("samples", [200, 1000, 3000, 10_000])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
def test_many_samples_with_a_large_mean_keep_seven_digits(samples, mean):
    inputs, outputs = related(samples, mean, 1.0, 0, torch.float32)
    error = (streamed(inputs, outputs, [samples]) - two_pass(inputs, outputs)).abs().max()
    assert error <= 1e-7


def test_a_mean_that_jumps_and_drifts_loses_no_digits():
    inputs, outputs = related(2000, 0.0, 1.0, 0, torch.float32)
    inputs[:, :, 1:] += 1e4  # the first sample is far from all others
    outputs += torch.linspace(0, 50, 2000).unsqueeze(1)
    assert (streamed(inputs, outputs, [1, 999, 1000]) - two_pass(inputs, outputs)).abs().max() <= 1e-7


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_the_split_into_batches_changes_no_bit(batches):
    batches = [*batches, 1500 - min(sum(batches), 1400)]
    inputs, outputs = related(sum(batches), 3.0, 1.0, 0, torch.float32)
    assert torch.equal(streamed(inputs, outputs, batches), streamed(inputs, outputs, [sum(batches)]))


@settings(deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 2000))
def test_runs_cover_all_samples_in_order_and_grow_with_their_number(before, samples):
    cut = runs(before, samples, torch.float32)
    assert [i for run in cut for i in range(run.start, run.stop)] == list(range(samples))
    longest = max(2 * before**0.5, (before + samples) ** 0.5)
    assert all(run.stop - run.start <= min(128, longest) for run in cut)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("samples", [300, 600, 2500])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_large_layers_keep_seven_digits_with_and_without_onednn(monkeypatch, onednn, samples, mean):
    if not onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(2, samples, 32, generator=generator)
    inputs, outputs = (
        shared.repeat(1, 1, width // 32) * 3 + torch.randn(2, samples, width, generator=generator) + mean
        for width in (288, 128)
    )
    sums, pieces = CorrelationSums(), CorrelationSums()
    sums.update(inputs, outputs)
    for below, above in zip(inputs.split(90, 1), outputs.split(90, 1), strict=True):
        pieces.update(below, above)
    below, above = (values.double() - values.double().mean(1, keepdim=True) for values in (inputs, outputs))
    expected = (above / above.norm(dim=1, keepdim=True)).mT @ (below / below.norm(dim=1, keepdim=True))
    assert expected.max() > 0.85
    assert (sums.correlation() - expected).abs().max() <= 1e-7
    assert torch.equal(sums.correlation(), pieces.correlation())


def test_units_that_share_cells_correlate_with_all_that_they_see():
    inputs, outputs = related(400, 1.0, 1.0, 0, torch.float32)
    cells, units = inputs[0], outputs[0, :2]
    taps = torch.tensor([[0, 2], [2, 1]])  # unit 0 sees cells 0 and 2, unit 1 sees 2 and 1
    sums = CorrelationSums(taps)
    sums.update(cells, units)
    seen = cells[taps].permute(1, 2, 3, 0).flatten(2)  # [units, samples, features * taps]
    expected = two_pass(seen.unsqueeze(0), units.unsqueeze(0))[0]
    assert (sums.correlation() - expected).abs().max() <= 1e-7
    assert (sums.absolute_sum(2) - expected.abs().sum(0)).abs().max() <= 2e-7


def test_a_small_buffer_changes_only_rounding():
    inputs, outputs = (side[0] for side in related(1000, 1.0, 1.0, 0, torch.float32))
    sums = CorrelationSums(buffer=0)
    sums.update(inputs, outputs)
    assert (sums.correlation() - two_pass(inputs.unsqueeze(0), outputs.unsqueeze(0))[0]).abs().max() <= 1e-7


RANKS = """
import sys, torch
from torch import distributed
from prunekit.errors import DataError
from prunekit.criteria.statistics.correlation_sums import CorrelationSums

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
inputs, outputs = torch.load(f"{folder}/data.pt", weights_only=True)
part = [slice(0, 700), slice(700, None)][rank]
sums = CorrelationSums()
sums.update(inputs[:, part], outputs[:, part])
sums.join_ranks()
torch.save([sums.correlation(), torch.tensor(sums.samples)], f"{folder}/rank{rank}.pt")
sums = CorrelationSums()
if rank == 0:
    sums.update(inputs, outputs)
try:
    sums.join_ranks()
except DataError as error:
    assert "rank 1 observed no samples" in str(error), error
else:
    raise AssertionError("no error")
distributed.destroy_process_group()
"""


def test_every_rank_gets_the_sums_of_all_ranks(tmp_path):
    inputs, outputs = (side[0] for side in related(1000, 1e3, 1.0, 0, torch.float32))
    inputs[:, 700:] += 5  # the ranks have other means
    inputs[..., 1] = 0.1
    torch.save([inputs, outputs], tmp_path / "data.pt")
    commands = [[sys.executable, "-c", RANKS, str(rank), str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(command) for command in commands]  # noqa: S603 - our own program
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == 1000
    assert (first[0][..., 1] == 0).all()
    inputs[:, 0, 1] = 0.2  # for the reference, which divides by deviations
    expected = two_pass(inputs.unsqueeze(0), outputs.unsqueeze(0))[0]
    others = [0, 2, 3, 4]
    assert (first[0] - expected)[..., others].abs().max() <= 1e-7


def test_double_precision_stays_double():
    inputs, outputs = related(300, 10.0, 1.0, 0, torch.float64)
    assert (streamed(inputs, outputs, [100, 7, 193]) - two_pass(inputs, outputs)).abs().max() < 1e-13


def test_half_precision_is_processed_in_single():
    inputs, outputs = related(300, 0.0, 1.0, 0, torch.bfloat16)
    assert (streamed(inputs, outputs, [150, 150]) - two_pass(inputs, outputs)).abs().max() <= 1e-7


@pytest.mark.parametrize(("samples", "copies"), [(100, 1), (600, 60)])
def test_autocast_and_fast_matmul_change_nothing(samples, copies):
    sides = related(samples, 0.0, 1.0, 0, torch.float32)
    inputs, outputs = (side.repeat(1, 1, 1, copies) for side in sides)
    expected = streamed(inputs, outputs, [samples])
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = streamed(inputs, outputs, [samples])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4 + 0.1, -3e30])
def test_constant_neurons_have_correlations_of_exactly_zero(constant):
    inputs, outputs = related(100, 0.0, 1.0, 0, torch.float32)
    inputs[..., 1] = constant
    outputs[..., 2] = constant
    found = streamed(inputs, outputs, [33, 1, 66])
    assert (found[..., 1] == 0).all()
    assert (found[..., 2, :] == 0).all()
    assert (found[..., 0, 0] < -0.999999).all()


def test_a_neuron_that_is_constant_only_in_the_first_batch_is_not_constant():
    inputs, outputs = related(90, 1e3, 1.0, 0, torch.float32)
    inputs[:, :, :30, 1] = 0.0
    outputs[:, :, :30, 2] = -7.0
    assert (streamed(inputs, outputs, [30, 60]) - two_pass(inputs, outputs)).abs().max() <= 1e-7


def test_correlations_never_leave_the_interval():
    inputs = torch.randn(1, 1, 1000, 20, generator=torch.Generator().manual_seed(0))
    found = streamed(inputs, torch.cat([inputs, -3 * inputs], 3), [1000])
    assert found.abs().max() <= 1
    assert found.dtype == torch.float64


def test_one_sample_has_correlations_of_zero():
    assert (streamed(torch.randn(1, 2, 1, 3), torch.randn(1, 2, 1, 4), [1]) == 0).all()


def test_no_samples_are_an_error():
    with pytest.raises(DataError, match="at least one batch"):
        CorrelationSums().correlation()
    with pytest.raises(DataError, match="at least one batch"):
        streamed(torch.zeros(1, 1, 0, 3), torch.zeros(1, 1, 0, 4), [0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("sample", [2, 6])
def test_nan_and_infinite_values_are_named(bad, side, sample):
    values = {"inputs": torch.randn(1, 1, 8, 3), "outputs": torch.randn(1, 1, 8, 2)}
    values[side][0, 0, sample, 1] = bad
    with pytest.raises(DataError, match=rf"1 of \d+ values are NaN or infinite in the {side} of a layer"):
        streamed(values["inputs"], values["outputs"], [4, 4])


def test_mismatched_shapes_are_named():
    with pytest.raises(DataError, match="samples"):
        CorrelationSums().update(torch.zeros(1, 4, 3), torch.zeros(1, 5, 3))
    sums = CorrelationSums()
    sums.update(torch.zeros(2, 4, 3), torch.zeros(2, 4, 5))
    with pytest.raises(DataError, match="inputs of the same size in all batches"):
        sums.update(torch.zeros(1, 4, 3), torch.zeros(1, 4, 5))


def test_neurons_that_change_late_and_very_little_lose_no_digits():
    inputs, outputs = related(61, 0.0, 1e-20, 0, torch.float32)
    inputs[:, :, :31] = outputs[:, :, :31] = 0.0
    assert (streamed(inputs, outputs, [1, 30, 30]) - two_pass(inputs, outputs)).abs().max() <= 1e-7
