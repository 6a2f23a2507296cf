import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers, parameter_name, resolve
from prunekit.layers.torch_views import ConvolutionView, LinearView, core_view
from prunekit.layers.view import LayerView

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def assert_view_explains_the_forward_pass(module: nn.Module, inputs: torch.Tensor, cut: int = 3) -> None:
    """Check outputs = inputs times weights plus bias at every position, also for slices of positions."""
    view = core_view(module)
    outputs = module(inputs)
    positions = view.positions(inputs)
    matrix = view.to_matrix(view.weight)
    bias = 0 if module.bias is None else module.bias.reshape(view.groups, 1, 1, view.outputs)
    everything = view.inputs_at(inputs, slice(None))
    assert view.outputs_at(outputs, slice(None)).shape[1] == positions == everything.shape[1]
    assert view.outputs_at(outputs, slice(None)).numel() == outputs.numel()
    for start in range(0, positions, cut):
        part = slice(start, min(start + cut, positions))
        unfolded = view.inputs_at(inputs, part)
        assert torch.equal(unfolded, everything[:, part])
        torch.testing.assert_close(
            torch.einsum("gmsf,gof->gmso", unfolded, matrix) + bias, view.outputs_at(outputs, part), rtol=0, atol=1e-10
        )

    some = torch.arange(positions)[::2]
    rebuilt = gathered(view, inputs, some)
    assert torch.equal(rebuilt, everything[:, some])
    assert torch.equal(
        view.units(outputs, some).unflatten(0, (view.groups, -1)), view.outputs_at(outputs, slice(None))[:, some]
    )


def gathered(view: LayerView, inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Assemble unfolded inputs from cells and taps."""
    cells, taps = view.cells(inputs, positions), view.taps(inputs, positions)
    seen = cells.unsqueeze(0) if taps is None else cells[taps]  # [taps, G * m, samples, features]
    return seen.permute(1, 2, 3, 0).flatten(2).unflatten(0, (view.groups, -1))


@st.composite
def convolutions(draw):
    dimensions = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731 - a shorthand
    groups = draw(st.integers(1, 3))
    kernel, dilation = each(1, 3), each(1, 2)
    same = draw(st.booleans())
    stride = (1,) * dimensions if same else each(1, 3)
    padding = "same" if same else each(0, 2)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    module = CONVOLUTIONS[dimensions](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        padding_mode=mode,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        dtype=torch.float64,
    )
    shape = (module.in_channels, *(size + 5 for size in each(0, 2)))
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    return module, (*batch, *shape), draw(st.integers(1, 40))


# Even kernels are among the cases; that they cost torch a copy is none of our business.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_the_view_of_a_convolution_reproduces_its_outputs(case):
    module, shape, cut = case
    assert_view_explains_the_forward_pass(module, torch.randn(shape, dtype=torch.float64), cut)


def test_channels_last_images_give_the_same_view():
    module = nn.Conv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64)
    images = torch.randn(3, 4, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_view_explains_the_forward_pass(module, images)


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4)])
def test_a_linear_layer_has_one_position_and_tokens_are_samples(shape):
    module = nn.Linear(4, 3, dtype=torch.float64)
    assert_view_explains_the_forward_pass(module, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("module", [nn.Linear(4, 3), nn.Conv1d(4, 6, 3, groups=2), nn.Conv3d(2, 4, (1, 2, 3))])
def test_a_weight_is_unchanged_after_reshaping_to_a_matrix_and_back(module):
    view = core_view(module)
    matrix = view.to_matrix(module.weight)
    assert matrix.shape == (view.groups, view.outputs, view.fan)
    assert torch.equal(view.from_matrix(matrix), module.weight)
    assert view.shape("name").weights == module.weight.numel()


def test_the_rows_of_a_grouped_convolution_are_split_by_group():
    view = core_view(nn.Conv2d(4, 6, 3, groups=2))
    assert torch.equal(view.to_matrix(view.weight)[1, 0], view.weight[3].flatten())


def test_views_exist_for_linear_layers_and_convolutions_only():
    assert isinstance(core_view(nn.Linear(2, 2)), LinearView)
    assert isinstance(core_view(nn.Conv3d(2, 2, 1)), ConvolutionView)
    for module in (nn.ConvTranspose2d(2, 2, 1), nn.LayerNorm(2), nn.Embedding(2, 2), nn.Sequential()):
        assert core_view(module) is None


def test_shared_modules_and_shared_weights_are_one_layer():
    shared, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.weight = shared.weight
    network = nn.Sequential(shared, shared, nn.ReLU(), tied, nn.Linear(3, 3))
    assert list(find_layers(network)) == ["0", "4"]
    assert list(find_layers(nn.Linear(2, 2))) == [""]


def test_a_weight_has_its_name_in_the_state_dict():
    network = nn.Sequential(nn.Linear(2, 2))
    assert [parameter_name(name, view) for name, view in find_layers(network).items()] == ["0.weight"]
    assert parameter_name("", core_view(network[0])) == "weight"


NAMES = ["features.conv1", "features.conv2", "features.f", "head.f2", "aux.conv2"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("features.f", ["features.f"]),  # exact
        ("top", ["head.f2"]),  # alias
        ("f", ["features.f"]),  # the end of a dotted name, not of a word
        ("conv1", ["features.conv1"]),
        ("features.conv*", ["features.conv1", "features.conv2"]),  # glob, in the order of the network
        ("*", NAMES),
    ],
)
def test_a_pattern_finds_the_matching_layers(pattern, expected):
    assert resolve(pattern, NAMES, {"top": "head.f2"}) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("conv2", r"could be features\.conv2, aux\.conv2"),
        ("features.conv3", r"did you mean 'features\.conv"),
        ("tops", "did you mean 'top'"),
        ("gone", "no prunable layer is called 'gone'"),  # an alias of a layer that is not there
        ("zzz*", "known: "),
    ],
)
def test_a_pattern_without_a_unique_match_is_explained(pattern, message):
    with pytest.raises(ConfigError, match=message):
        resolve(pattern, NAMES, {"top": "head.f2", "gone": "nowhere"})


def test_every_slice_of_positions_is_unfolded_in_order():
    module = nn.Conv3d(1, 1, 1, dtype=torch.float64)
    view = core_view(module)
    images = torch.arange(24, dtype=torch.float64).reshape(1, 1, 2, 3, 4)
    for start, stop in itertools.combinations(range(25), 2):
        assert view.inputs_at(images, slice(start, stop)).flatten().tolist() == list(range(start, stop))
