from fractions import Fraction

import attrs
import pytest
import torch
from prunekit_deepid2plus.network import POOLED, Network, NetworkSettings, activation_names, stage_values
from prunekit_deepid2plus.plugin import prunekit_layer_views
from torch import Tensor

from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.layers.view import LayerView

PAPER = {
    "conv1a": 1_728,
    "conv1b": 36_864,
    "conv2a": 55_296,
    "conv2b": 82_944,
    "conv3a": 165_888,
    "conv3b": 331_776,
    "conv4a": 442_368,
    "conv4b": 589_824,
    "local5a": 11_796_480,
    "local5b": 3_538_944,
    "f": 786_432,
}
SMALL = NetworkSettings(width=1 / 16, feature=16, input_size=(56, 48))


def layers_of(network: Network) -> dict[str, LayerView]:
    return find_layers(network, lambda module: core_view(module) or prunekit_layer_views(module))


def paper_weights() -> dict[str, int]:
    with torch.device("meta"):
        views = layers_of(Network(NetworkSettings()))
    return {name: view.shape(name).weights for name, view in views.items()}


def test_the_layers_have_the_weights_of_the_papers_table() -> None:
    weights = paper_weights()
    assert list(weights.items()) == list(PAPER.items())
    assert sum(weights.values()) == 17_828_544


@pytest.mark.parametrize(
    ("structure", "printed"),
    [
        ({"f": 256}, "0.96"),
        ({"f": 256, "local5b": 128}, "0.76"),
        ({"f": 256, "local5b": 128, "conv4b": 2}, "0.74"),
        ({"f": 256, "local5b": 128, "local5a": 2}, "0.43"),
        ({"f": 256, "local5b": 128, "local5a": 32}, "0.12"),
    ],
)
def test_the_papers_compression_ratios_come_out(structure: dict[str, int], printed: str) -> None:
    weights = paper_weights()
    left = sum(Fraction(count, structure.get(name, 1)) for name, count in weights.items())
    assert f"{float(left / sum(weights.values())):.2f}" == printed


@pytest.mark.parametrize("size", POOLED)
def test_the_top_keeps_its_geometry_at_every_input_size(size: tuple[int, int]) -> None:
    settings = attrs.evolve(SMALL, input_size=size)
    with torch.device("meta"):
        stages = Network(settings).stages(torch.empty(2, 3, *size))
    assert stages["4"].shape == (2, 16, 7, 6)
    assert stages["5"].shape == (2, 16, 3, 2)
    assert stages["f"].shape == (2, 16)
    assert stage_values(settings)["5"] == 96


def test_an_activation_is_what_the_next_layer_sees() -> None:
    network = Network(SMALL).eval()
    seen: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _module, _inputs, outputs, name=name: seen.update({name: outputs}))
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({f"into {name}": inputs[0]}))
    feature = network(torch.randn(2, 3, 56, 48))
    names = activation_names()
    assert list(names) == list(PAPER)
    assert torch.equal(seen[names["conv3a"]], seen["into conv3b"])
    assert torch.equal(seen[names["local5a"]], seen["into local5b"])
    assert torch.equal(seen[names["local5b"]].flatten(1), seen["into f"])
    assert torch.equal(seen[names["f"]], feature)


def test_f_is_rectified_only_on_request() -> None:
    images = torch.randn(4, 3, 56, 48)
    assert (Network(SMALL)(images) < 0).any()
    assert (Network(attrs.evolve(SMALL, feature_relu=True))(images) >= 0).all()


def test_without_batch_normalisation_the_layers_have_biases() -> None:
    plain = dict(Network(attrs.evolve(SMALL, batch_norm=False)).named_parameters())
    assert "conv1a.bias" in plain
    assert "local5a.bias" in plain
    assert not any(name.startswith("norm") for name in plain)
    normed = dict(Network(SMALL).named_parameters())
    assert "conv4b.weight" in normed
    assert "conv4b.bias" not in normed
    assert "normf.weight" in normed
