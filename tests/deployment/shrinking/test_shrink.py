import copy

import pytest
import torch
from drawn_networks import fill, images, networks, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import prunekit
from prunekit import Masks
from prunekit.deployment.shrinking import coupled_masks, coupled_units, load_shrunk, save_shrunk, shrink, whole_units
from prunekit.errors import ConfigError
from prunekit.layers.torch_views import core_view


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(networks())
def test_a_shrunk_network_has_the_same_outputs(drawn):
    network, channels = drawn
    before = copy.deepcopy(network.state_dict())
    shrunk = shrink(network, images(channels), view_of=core_view)
    others = images(channels, 5, seed=1)
    small = shrunk.network.eval()
    expected = network.eval()(others.clone())
    torch.testing.assert_close(small(others.clone()), expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, sizes in shrunk.report.layers.items():
        assert sizes.weights[1] == small.get_submodule(name).weight.numel() <= sizes.weights[0]
    again = shrink(small, images(channels), view_of=core_view).network
    torch.testing.assert_close(again(others.clone()), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(networks())
def test_shrinking_is_exact_in_single_precision_and_deterministic(drawn):
    network, channels = drawn
    network, inputs = network.float(), images(channels).float()
    first, second = (shrink(network, inputs, view_of=core_view).network.eval() for _ in range(2))
    expected = network.eval()(inputs.clone()).detach()
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(first(inputs.clone()).detach() / scale, expected / scale, rtol=0, atol=1e-5)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def kept_of_a_chain(layers):
    """Return how many units a chain of linear layers keeps, found unit by unit: those that vary and are read."""
    varies = [[True] * layers[0].in_features]
    for layer in layers:
        rows = layer.weight.tolist()
        varies.append([any(w != 0 and v for w, v in zip(row, varies[-1], strict=True)) for row in rows])
    kept = [[True] * layers[-1].out_features]
    for layer, before in zip(reversed(layers), reversed(varies[:-1]), strict=True):
        rows = [row for row, stays in zip(layer.weight.tolist(), kept[0], strict=True) if stays]
        kept.insert(0, [v and any(row[at] != 0 for row in rows) for at, v in enumerate(before)])
    return [sum(units) for units in kept[1:]]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_chain_loses_every_unit_that_is_constant_or_unread(seed, sizes):
    layers = [nn.Linear(a, b) for a, b in zip([4, *sizes], [*sizes, 3], strict=True)]
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).double()
    fill(network, seed)
    shrunk = shrink(network, torch.randn(2, 4, dtype=torch.float64), view_of=core_view)
    units = [sizes.units[1] for sizes in shrunk.report.layers.values()]
    expected = kept_of_a_chain(layers)
    if all(expected):
        assert units == expected
    else:  # a layer that could lose all units keeps one, and the units which that one reads
        assert all(unit >= max(1, kept) for unit, kept in zip(units, expected, strict=True))


def conv_chain(*, padding=1):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=padding), nn.ReLU()
    )
    with torch.no_grad():
        network[1].bias.fill_(0.5)
        network[0].weight[:3] = 0
        network[0].bias.zero_()
    return network.double()


def test_constants_fold_into_biases_where_nothing_is_padded():
    shrunk = shrink(conv_chain(padding=0), images(2))
    assert shrunk.report.layers["0"].units == (6, 3)
    assert not shrunk.report.layers["0"].constant_units


def test_one_unit_carries_all_padded_constants():
    shrunk = shrink(conv_chain(), images(2))
    assert shrunk.report.layers["0"].units == (6, 4)
    assert shrunk.report.layers["0"].constant_units == {"3 pads its constant with zeros": 1}
    assert "1 constant unit kept: 3 pads its constant with zeros" in str(shrunk.report)
    assert shrunk.network[1].num_features == 4
    assert shrunk.report.units == (10, 8)


def test_masked_units_are_removed_and_masks_are_cut_like_the_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).double()
    rows = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    rows[[1, 4]] = False
    rows[0, 0] = False
    bias = torch.ones(6, dtype=torch.bool)
    bias[[1, 4]] = False
    masks = Masks({"0.weight": rows, "0.bias": bias}, {"seed": 7})
    shrunk = shrink(network, images(2), masks)
    assert bool(network[0].weight.all())
    assert shrunk.masks.info == {"seed": 7}
    assert torch.equal(shrunk.masks.tensors["0.weight"], rows[[0, 2, 3, 5]])
    assert torch.equal(shrunk.masks.tensors["0.bias"], bias[[0, 2, 3, 5]])
    outputs = shrunk.network(images(2))
    shrunk.masks.apply(shrunk.network)
    assert torch.equal(outputs, shrunk.network(images(2)))


def test_modules_keep_their_training_or_evaluation_mode():
    network = conv_chain()
    network[1].eval()
    assert [module.training for module in shrink(network, images(2)).network] == [True, False, True, True, True]


class Sized(nn.Module):
    """A network whose forward treats channels in one of several unusual ways."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.fc, self.how = nn.Conv2d(2, 6, 3), nn.Linear(6 * 36, 3), how
        with torch.no_grad():
            self.conv.weight[:3] = 0

    def forward(self, values):  # noqa: PLR0911 - one return for each way
        values = self.conv(values).relu()
        if self.how == "number":
            return self.fc(values.view(-1, 6 * 36))
        if self.how == "computed":
            count, channels, rows, columns = values.shape
            return self.fc(values.view(count, channels * rows * columns))
        if self.how == "branch":
            return self.fc(values.flatten(1)) if values.sum() > 0 else values.sum()
        if self.how == "slice":
            return self.fc(torch.cat([values[:, 3:], values[:, :3]], 1).flatten(1))
        if self.how == "softmax":
            return self.fc(values.softmax(1).flatten(1))
        if self.how == "data":
            values.data.add_(1)
            return self.fc(values.flatten(1))
        if self.how == "alias":
            flat = values.flatten(1)
            values += 1
            return self.fc(flat)
        if self.how == "weight":
            return self.fc(values.flatten(1)) + self.conv.weight.sum()
        if self.how == "inference":
            with torch.inference_mode():
                values = values + 1
                values.mul_(2)
            return self.fc(values.flatten(1))
        return self.fc(values.flatten(1)).new_tensor([values.shape[1]])


@pytest.mark.parametrize(("how", "units"), [("number", 6), ("computed", 3), ("branch", 6), ("slice", 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_size_written_as_a_number_is_tried_and_other_unknowns_keep_all_channels(how, units, dtype):
    torch.manual_seed(0)
    network = Sized(how).to(dtype)
    shrunk = shrink(network, images(2).to(dtype))
    assert shrunk.report.layers["conv"].units == (6, units)


@pytest.mark.parametrize("how", ["softmax", "data", "alias", "weight", "inference"])
def test_channels_through_unknown_operations_are_kept(how):
    torch.manual_seed(0)
    network = Sized(how).double().requires_grad_(requires_grad=False)
    shrunk = shrink(network, images(2))
    assert shrunk.report.layers["conv"].units == (6, 6)
    torch.testing.assert_close(shrunk.network(images(2)), network(images(2)))


def test_a_forward_that_returns_the_number_of_channels_is_an_error():
    with pytest.raises(ConfigError, match="cannot be shrunk: an output is off by 3, more than"):
        shrink(Sized("count").double(), images(2))


def normed(network):
    nn.utils.parametrizations.weight_norm(network[0])


def hooked(network):
    network[0].register_forward_hook(lambda *_: None)


def pruned_by_torch(network):
    prune.custom_from_mask(network[0], "weight", (network[0].weight != 0).double())


def tied(network):
    network[2].weight = network[0].weight


@pytest.mark.parametrize("spoil", [normed, hooked, pruned_by_torch, tied])
def test_a_layer_whose_weights_have_other_uses_is_not_resized(tmp_path, spoil):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        network[2].weight[:, :2] = 0  # nothing reads the first two units
        network[0].weight[:, :2] = 0
    spoil(network)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    shrunk = shrink(network, inputs)
    assert shrunk.report.layers["0"].units == (4, 4)
    save_shrunk(tmp_path / "shrunk.safetensors", shrunk.network)
    torch.testing.assert_close(load_shrunk(network, tmp_path / "shrunk.safetensors")(inputs), network(inputs))


def test_a_layer_called_twice_is_resized_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, values):
            values = self.first(values).relu()
            return self.last(self.again(self.again(values).relu()).relu())

    torch.manual_seed(0)
    network = Twice().double()
    with torch.no_grad():
        for layer in (network.first, network.again):
            layer.weight[:2] = 0
            layer.bias[:2] = -1
        network.again.weight[:, :2] = 0
        network.last.weight[:, :2] = 0
    inputs = torch.randn(3, 4, dtype=torch.float64)
    shrunk = shrink(network, inputs)
    assert shrunk.report.layers["again"].units == (5, 3)
    torch.testing.assert_close(shrunk.network(inputs), network(inputs))


def test_outputs_in_containers_are_kept_and_keyword_arguments_are_passed():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, values, *, scale):
            hidden = self.first(values) * scale
            return {"hidden": hidden, "deep": [self.second(F.relu(hidden)), 3]}

    network = Many()
    with torch.no_grad():
        network.first.weight[0] = 0
        network.second.weight[1] = 0
    scale = torch.tensor(2.0)
    shrunk = shrink(network, {"values": torch.randn(2, 3), "scale": scale})
    assert [sizes.units for sizes in shrunk.report.layers.values()] == [(4, 4), (4, 4)]


def test_units_whose_outputs_are_added_are_coupled():
    groups = coupled_units(residual(), images(2))
    inner = [group for group in groups if "1.first.0" in group]
    assert inner == [{"0": (unit,), "1.first.0": (unit,), "1.second": (unit,)} for unit in range(6)]
    assert len(groups) == 6


def test_coupled_masks_drop_whole_channels_of_a_residual_network():
    network = residual()
    fill(network, 1)
    with torch.no_grad():
        for name in ("0", "1.first.0", "1.second", "4"):
            network.get_submodule(name).weight.normal_()
    masks = coupled_masks(network, images(2), 0.5)
    powers = sum(
        network.get_submodule(name).weight.square().flatten(1).sum(1) for name in ("0", "1.first.0", "1.second")
    )
    best = sorted(powers.topk(3).indices.tolist())
    assert masks.tensors["0.bias"].nonzero().flatten().tolist() == best
    assert masks.tensors["1.first.1.weight"].nonzero().flatten().tolist() == best
    shrunk = shrink(network, images(2), masks)
    assert {sizes.units for name, sizes in shrunk.report.layers.items() if name != "4"} == {(6, 3)}
    assert not any(sizes.constant_units for sizes in shrunk.report.layers.values())


def test_biases_of_a_channel_are_kept_while_another_layer_computes_it():
    network = residual()
    mask = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    mask[0] = False
    alone = whole_units(network, images(2), Masks({"0.weight": mask}))
    assert alone == Masks({"0.weight": mask})


def test_a_network_of_one_layer_keeps_all_units():
    layer = nn.Linear(3, 2)
    shrunk = shrink(layer, torch.randn(1, 3), Masks({"weight": torch.zeros(2, 3, dtype=torch.bool)}))
    assert shrunk.report.layers[""].units == (2, 2)
    assert shrunk.report.layers[""].constant_units == {"it is an output of the network": 2}


def test_samples_of_a_wrong_shape_raise_the_error_of_the_network():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        shrink(nn.Linear(3, 2), torch.randn(1, 4))


def test_groups_of_a_convolution_are_removed_whole():
    from prunekit.testing import ToyNetwork

    network = ToyNetwork().double()
    fill(network, 0)
    inputs = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    mask = torch.ones(8, 4, 3, 3, dtype=torch.bool)
    mask[4:] = False
    network.conv_b.weight.data.normal_()
    network.conv_b.bias.data.fill_(-1)
    network.conv_a.weight.data.normal_()
    shrunk = shrink(network, inputs, prunekit.Masks({"conv_b.weight": mask}))
    assert shrunk.network.conv_b.groups == 1
    assert shrunk.report.layers["conv_a"].units == (8, 4)


def test_a_network_without_traceable_layers_is_not_changed():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    values = torch.randn(2, 3, 8)
    shrunk = shrink(attention, (values, values, values))
    assert shrunk.report.units == shrunk.report.weights == (0, 0)
    assert str(shrunk.report).startswith("all layers: 0 -> 0 units")
