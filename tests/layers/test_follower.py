import copy

import pytest
import torch
from torch import nn

from prunekit.deployment.shrinking import load_shrunk, save_shrunk, shrink, whole_units
from prunekit.layers.channels.finding import find_channel_groups
from prunekit.layers.follower import ChannelFollower
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.masks.masks import Masks


class Scale(nn.Module):
    """Multiplies each channel, the last axis, by a weight ``[channels, 1]``."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(channels, 1).double() + 0.5)

    def forward(self, values):
        return values * self.factor[:, 0]


class ScaleFollower(ChannelFollower):
    per_channel = ("factor",)
    channel_axis = -1

    def constants(self, inputs):
        return inputs * self.values("factor")[:, 0]


class GroupNormFollower(ChannelFollower):
    per_channel = ("weight", "bias")

    @property
    def groups(self):
        return self.module.num_groups

    def constants(self, inputs):
        groups = inputs.reshape(self.groups, -1)
        centred = groups - groups.mean(1, keepdim=True)
        normalised = centred / (groups.var(1, keepdim=True, correction=0) + self.module.eps).sqrt()
        return normalised.flatten() * self.values("weight") + self.values("bias")

    def resize(self, kept):
        size = self.channels // self.groups
        super().resize(kept)
        self.module.num_groups, self.module.num_channels = len(kept) // size, len(kept)


class PReLUFollower(ChannelFollower):
    per_channel = ("weight",)

    def constants(self, inputs):
        return torch.where(inputs < 0, inputs * self.values("weight"), inputs)

    def resize(self, kept):
        super().resize(kept)
        self.module.num_parameters = len(kept)


FOLLOWERS = {Scale: ScaleFollower, nn.GroupNorm: GroupNormFollower, nn.PReLU: PReLUFollower}


def view_of(module):
    return FOLLOWERS[type(module)](module) if type(module) in FOLLOWERS else core_view(module)


def network(follower):
    """Return a network of double precision whose follower's first four of eight channels are constant."""
    torch.manual_seed(0)
    if isinstance(follower, Scale):
        layers = nn.Sequential(nn.Linear(3, 8), follower, nn.Tanh(), nn.Linear(8, 2))
    else:
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), follower, nn.Tanh(), nn.Conv2d(8, 2, 3))
    for parameter in layers.double().parameters():
        nn.init.normal_(parameter)
    nn.init.zeros_(layers[0].weight[:4].detach())
    return layers


def inputs_of(layers, count=4, seed=0):
    shape = (count, 3) if isinstance(layers[0], nn.Linear) else (count, 3, 7, 7)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "follower",
    [Scale(8), nn.PReLU(8), nn.GroupNorm(4, 8), nn.GroupNorm(8, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8, bias=False)],
    ids=str,
)
def test_channels_through_a_follower_are_removed_with_equal_outputs(follower, tmp_path):
    layers = network(copy.deepcopy(follower)).eval()
    shrunk = shrink(layers, inputs_of(layers), view_of=view_of)
    assert shrunk.report.layers["0"].units == (8, 4)
    assert view_of(shrunk.network[1]).channels == 4
    others = inputs_of(layers, seed=1)
    expected = layers(others)
    torch.testing.assert_close(shrunk.network(others), expected, rtol=1e-12, atol=1e-12)
    save_shrunk(tmp_path / "small.safetensors", shrunk.network, view_of=view_of)
    loaded = load_shrunk(layers, tmp_path / "small.safetensors", view_of=view_of)
    assert torch.equal(loaded(others), shrunk.network(others))
    assert str(loaded) == str(shrunk.network)


def test_a_group_with_a_channel_in_use_is_kept_whole():
    layers = network(nn.GroupNorm(2, 8))
    with torch.no_grad():
        layers[0].weight[3] = 1
    shrunk = shrink(layers, inputs_of(layers), view_of=view_of)
    assert shrunk.report.layers["0"].units == (8, 8)


def test_the_parameters_of_a_follower_are_dropped_with_their_channel():
    layers = network(Scale(8))
    assert find_channel_groups(layers, inputs_of(layers), view_of).parameters["1.factor"].shape == (8, 1)
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[:4] = False
    masks = whole_units(layers, inputs_of(layers), Masks({"0.weight": mask}), view_of=view_of)
    assert masks.tensors["1.factor"].tolist() == [[False]] * 4 + [[True]] * 4
    shrunk = shrink(layers, inputs_of(layers), masks, view_of=view_of)
    assert torch.equal(shrunk.masks.tensors["1.factor"], torch.ones(4, 1, dtype=torch.bool))


def test_without_its_follower_an_unknown_module_keeps_all_channels():
    layers = network(nn.GroupNorm(4, 8))
    assert shrink(layers, inputs_of(layers), view_of=core_view).report.layers["0"].units == (8, 8)


def test_a_follower_of_another_number_of_channels_is_not_resized():
    shared = nn.PReLU(1)
    layers = network(shared).append(shared)  # called with eight channels, and with two
    shrunk = shrink(layers, inputs_of(layers), view_of=view_of)
    assert shrunk.report.layers["0"].units == (8, 8)
    assert shrunk.network[1].num_parameters == 1


def test_a_parameter_with_one_entry_for_all_channels_belongs_to_none_of_them():
    layers = network(nn.PReLU(1))
    groups = find_channel_groups(layers, inputs_of(layers), view_of)
    assert "1.weight" not in groups.parameters


def test_a_follower_with_a_parameter_it_does_not_name_is_not_resized():
    layers = network(Scale(8))
    layers[1].register_parameter("offset", nn.Parameter(torch.zeros(8)))
    shrunk = shrink(layers, inputs_of(layers), view_of=view_of)
    assert shrunk.report.layers["0"].units == (8, 8)


def test_a_follower_is_not_a_layer_and_keeps_buffers_and_gradients_as_they_are():
    norm = nn.BatchNorm1d(3)
    norm.bias.requires_grad_(requires_grad=False)
    norm.running_mean.copy_(torch.arange(3.0))
    assert find_layers(norm) == {}
    core_view(norm).resize(torch.tensor([0, 2]))
    assert (norm.num_features, norm.running_mean.tolist()) == (2, [0.0, 2.0])
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (True, False)
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
