import copy
import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.deployment.sparse.csr_matrix import CompressedRows
from prunekit.deployment.sparse.sparse_layer import DENSE, SparseLayer, make_product, why_dense
from prunekit.deployment.sparse.unrolling import unroll
from prunekit.errors import ConfigError, TrainingError
from prunekit.layers.torch_views import ConvolutionView, LinearView

DTYPES = st.sampled_from([torch.float32, torch.float64])
OF_TORCH = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
DENSITIES = st.sampled_from([0.0, 0.1, 0.5, 1.0])


def prune(module, density, generator):
    with torch.no_grad():
        module.weight *= torch.rand(module.weight.shape, generator=generator) < density
    return module.eval().requires_grad_(False)


def close(found, wanted):
    # Sums are of at most a few hundred terms of size 1.
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= 1e3 * torch.finfo(wanted.dtype).eps).all())


def test_compressed_rows_are_those_of_the_definition():
    matrix = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]])
    rows = CompressedRows.from_dense(matrix)
    assert rows.crow_indices.tolist() == [0, 2, 2, 4]
    assert rows.col_indices.tolist() == [1, 3, 0, 3]
    assert rows.values.tolist() == [2, -1, 3, 4]
    assert rows.crow_indices.dtype == rows.col_indices.dtype == torch.int32
    assert torch.equal(rows.tensor().to_dense(), matrix)
    assert rows.tensor().values().data_ptr() == rows.values.data_ptr()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 20), st.integers(0, 99))
def test_entries_in_any_order_are_compressed_and_those_of_one_place_added(rows, columns, count, seed):
    generator = torch.Generator().manual_seed(seed)
    row, column = (torch.randint(size, (count,), generator=generator) for size in (rows, columns))
    values = torch.randint(1, 9, (count,), generator=generator).double()
    wanted = torch.zeros(rows, columns, dtype=torch.float64)
    for i, j, value in zip(row, column, values, strict=True):
        wanted[i, j] += value
    assert torch.equal(CompressedRows.from_entries(row, column, values, (rows, columns)).tensor().to_dense(), wanted)


def test_a_copied_converted_or_loaded_matrix_has_the_new_values():
    rows = CompressedRows.from_dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    first = rows.tensor()
    twin = copy.deepcopy(rows)
    twin.values.mul_(2)
    assert torch.equal(twin.tensor().to_dense(), 2 * first.to_dense())
    assert torch.equal(rows.tensor().to_dense(), first.to_dense())
    assert rows.double().tensor().dtype == torch.float64
    rows.load_state_dict(twin.double().state_dict())
    assert torch.equal(rows.tensor().to_dense(), twin.tensor().to_dense())
    rows.load_state_dict({**rows.state_dict(), "values": torch.tensor([5.0, 6.0])}, assign=True)
    assert rows.tensor().values().tolist() == [5, 6]


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(), (1,), (0,), (70,), (2, 3), (2, 1, 2)]),
    st.booleans(),
    DTYPES,
    DENSITIES,
    st.integers(0, 99),
)
def test_a_linear_layer_has_the_outputs_of_the_dense_one_in_each_form(
    inputs, outputs, leading, bias, dtype, density, seed
):
    generator = torch.Generator().manual_seed(seed)
    dense = prune(nn.Linear(inputs, outputs, bias=bias, dtype=dtype), density, generator)
    product = make_product(LinearView(dense), (inputs,))
    values = torch.randn(*leading, inputs, generator=generator, dtype=dtype)
    assert product.forms == ("vectors", "columns")
    for form in product.forms:
        found = product(values, form)
        assert close(found, dense(values))
        assert found.is_contiguous()
    assert product.size(values) == math.prod(leading)


@st.composite
def convolutions(draw):
    """Return a convolution with its inputs."""
    dimensions = draw(st.integers(1, 3))

    def each(values):
        return tuple(draw(values) for _ in range(dimensions))

    kernel, dilation = each(st.integers(1, 3)), each(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    stride = each(st.integers(1, 3))
    padding = draw(st.sampled_from(["same", "valid", "amounts"]))
    if padding == "same":
        stride = (1,) * dimensions
    elif padding == "amounts":
        padding = each(st.integers(0, 2))
    groups = draw(st.sampled_from([1, 2, 3]))
    settings_of = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    channels, maps = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = kind(channels, maps, kernel, bias=draw(st.booleans()), dtype=draw(DTYPES), **settings_of)
    prune(layer, draw(DENSITIES), torch.default_generator)
    samples = draw(st.sampled_from([(), (1,), (3,)]))
    # At least as large as the kernel reaches, and as reflection needs.
    sizes = each(st.integers(5, 7))
    return layer, torch.randn(*samples, channels, *sizes, dtype=layer.weight.dtype)


@OF_TORCH
@settings(deadline=None, max_examples=150)
@given(convolutions())
def test_a_convolution_of_any_kind_has_the_outputs_of_the_dense_one(case):
    layer, images = case
    product = make_product(ConvolutionView(layer), tuple(images.shape[1:]))
    found = product(images, "taps")
    assert close(found, layer(images))
    assert found.is_contiguous()
    assert product.size(images) == (len(images) if images.dim() > len(layer.stride) + 1 else 1)
    assert sum(len(matrix.values) for matrix in product.matrices) == layer.weight.count_nonzero()


@OF_TORCH
@settings(deadline=None, max_examples=100)
@given(convolutions())
def test_any_layer_can_be_unrolled_through_its_view_alone(case):
    layer, images = case
    if images.dim() == len(layer.stride) + 1:
        images = images.unsqueeze(0)
    product = unroll(ConvolutionView(layer), tuple(images.shape[1:]))
    for form in product.forms:
        assert close(product(images, form), layer(images))


def test_an_unrolled_convolution_is_the_matrix_that_loops_would_write():
    torch.manual_seed(0)
    layer = prune(nn.Conv1d(2, 3, 2, stride=2, padding=1, dtype=torch.float64), 0.5, torch.default_generator)
    matrix = torch.zeros(3, 3, 2, 4, dtype=torch.float64)  # [maps, outputs, channels, inputs]
    for unit, position, channel, tap in itertools.product(range(3), range(3), range(2), range(2)):
        place = 2 * position + tap - 1
        if 0 <= place < 4:
            matrix[unit, position, channel, place] += layer.weight[unit, channel, tap]
    product = unroll(ConvolutionView(layer), (2, 4))
    assert torch.equal(product.matrix.tensor().to_dense(), matrix.reshape(9, 8))
    assert torch.equal(product.constant.reshape(3, 3), layer.bias.unsqueeze(1).expand(3, 3))


def test_images_in_channels_last_order_give_the_same(mixed_network):
    layer = prune(mixed_network[2], 0.5, torch.default_generator)
    images = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    product = make_product(ConvolutionView(layer), (4, 6, 6))
    assert torch.equal(product(images.to(memory_format=torch.channels_last), "taps"), product(images, "taps"))


def sparse_linear(forms, dense=None):
    torch.manual_seed(0)
    layer = prune(nn.Linear(6, 4), 0.5, torch.default_generator)
    return layer, SparseLayer(make_product(LinearView(layer), (6,)), forms, dense and layer).eval()


def test_the_number_of_samples_decides_and_between_two_the_nearer_one_by_ratio():
    _, layer = sparse_linear({32: DENSE, 2: "columns", 8: "vectors"}, dense=True)
    seen = []
    layer.product.forward = lambda _, form: seen.append(form)
    layer.dense.forward = lambda inputs: seen.append(DENSE) or inputs
    for size in (0, 1, 2, 4, 5, 8, 16, 17, 1000):
        layer(torch.zeros(size, 6))
    assert seen == ["columns"] * 4 + ["vectors"] * 3 + [DENSE] * 2
    layer(torch.zeros(2, 2, 6))
    assert seen[-1] == "columns"  # four rows


def test_training_a_sparse_layer_is_an_error():
    _, layer = sparse_linear({1: "vectors"})
    with pytest.raises(TrainingError, match="does not support gradients; call eval"):
        layer(torch.ones(1, 6, requires_grad=True))
    with torch.no_grad():
        layer(torch.ones(1, 6, requires_grad=True))
    with pytest.raises(TrainingError, match="train the dense model with its masks"):
        layer.train()(torch.ones(1, 6))


def test_inputs_that_do_not_fit_are_refused():
    _, layer = sparse_linear({1: "vectors"})
    with pytest.raises(ConfigError, match=r"torch.float32 on cpu, got torch.float64 on cpu; both must be"):
        layer(torch.ones(1, 6, dtype=torch.float64))
    _, layer = sparse_linear({1: "columns"})
    with pytest.raises(ConfigError, match=r"without torch.autocast"), torch.autocast("cpu"):
        layer(torch.ones(1, 6))
    with pytest.raises(ConfigError, match=r"takes samples of \[6\], got inputs of \[1, 7\]"):
        layer(torch.ones(1, 7))
    with pytest.raises(ConfigError, match=r"both must be float32 or float64"):
        layer.bfloat16()(torch.ones(1, 6, dtype=torch.bfloat16))
    convolution = make_product(ConvolutionView(nn.Conv2d(1, 1, 3)), (1, 8, 8))
    with pytest.raises(ConfigError, match=r"reach of \[3, 3\] got inputs of \[1, 1, 2, 8\]"):
        convolution(torch.ones(1, 1, 2, 8), "taps")
    with pytest.raises(RuntimeError):  # torch's own, as from a dense convolution
        SparseLayer(convolution.eval(), {1: "taps"}).eval()(torch.ones(1, 2, 8, 8))


def test_a_layer_says_why_it_cannot_run_sparse():
    view = LinearView(nn.Linear(2, 2, dtype=torch.bfloat16))
    assert why_dense(view, (2,), torch.bfloat16).startswith("has weights of torch.bfloat16")
    assert why_dense(LinearView(nn.Linear(2, 2, device="meta")), (2,), torch.float32).startswith("is on meta")
    assert not why_dense(LinearView(nn.Linear(2, 2)), (2,), torch.float32)


@pytest.mark.thorough
def test_torch_prints_no_warning():
    code = """
import torch
from torch import nn
import prunekit
from prunekit.deployment.sparse import run_sparse
layer = nn.Conv2d(2, 2, 3)
network = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
masks = prunekit.select(network, density=0.5)
sparse, _ = run_sparse(network, masks, torch.ones(1, 2, 6, 6), form="csr")
sparse(torch.ones(5, 2, 6, 6))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)  # noqa: S603 - the code above
