import pytest
import torch
from prunekit_images.networks import build_network, check_network
from prunekit_images.presets import PRESETS
from prunekit_images.vit import VisionTransformer, patch_side
from torch import nn

from prunekit.errors import ConfigError
from prunekit.layers.lookup import find_layers

MNIST = (1, 28, 28)


def weights(network: nn.Module) -> dict[str, int]:
    return {name: view.weight.numel() for name, view in find_layers(network).items()}


def test_lenet_300_100_has_the_weights_of_the_papers() -> None:
    network = build_network("lenet-300-100", MNIST, 10, None, None)
    assert weights(network) == {"fc1": 235_200, "fc2": 30_000, "fc3": 1_000}
    assert sum(parameter.numel() for parameter in network.parameters()) == 266_610


def test_lenet_5_has_the_weights_of_the_papers() -> None:
    network = build_network("lenet-5", MNIST, 10, None, None)
    assert weights(network) == {"conv1": 500, "conv2": 25_000, "fc1": 400_000, "fc2": 5_000}
    assert sum(parameter.numel() for parameter in network.parameters()) == 431_080


@pytest.mark.parametrize(("blocks", "depth", "total"), [(1, 8, 77_072), (2, 14, 173_840), (3, 20, 270_608)])
def test_a_resnet_has_six_layers_for_each_block_of_a_stage(blocks: int, depth: int, total: int) -> None:
    counts = weights(build_network("resnet", MNIST, 10, 16, blocks))
    assert len([name for name in counts if "shortcut" not in name]) == depth
    assert counts["block1.conv1"] == 16 * 16 * 9
    assert sum(counts.values()) == total


def test_a_vit_shows_every_projection_as_a_layer() -> None:
    network = build_network("vit", MNIST, 10, 64, 3)
    counts = weights(network)
    assert counts["block3.attention.key"] == 64 * 64
    assert counts["block1.fc1"] == 64 * 256
    assert sum(counts.values()) == 64 * 16 + 3 * 12 * 64 * 64 + 640
    assert all(view.observable for view in find_layers(network).values())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 24, 16)])
def test_every_network_takes_images_of_8_to_64_and_names_its_activations(
    name: str, shape: tuple[int, int, int]
) -> None:
    if name == "lenet-5" and shape[1] == 8:
        pytest.skip("too small for two 5x5 convolutions, which is refused")
    check_network(name, shape)
    network = build_network(name, shape, 7, PRESETS[name].width, PRESETS[name].blocks).eval()
    images = torch.randn(2, *shape)
    scores = network(images)
    assert scores.shape == (2, 7)
    assert scores.isfinite().all()
    # An image's scores are its own.
    torch.testing.assert_close(network(images[:1]), scores[:1])
    layers = find_layers(network)
    for layer, module in network.activation_of.items():  # type: ignore[union-attr,operator]
        assert layer in layers
        assert isinstance(network.get_submodule(module), nn.ReLU | nn.GELU)


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (50, 2), (17, 1), (1, 1), (96, 6)])
def test_heads_divide_any_width(width: int, heads: int) -> None:
    network = build_network("vit", (1, 8, 8), 10, width, 1)
    assert network.get_submodule("block1").attention.heads == heads  # type: ignore[union-attr]
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_images_that_a_network_cannot_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="lenet-5', which takes images of at least 16x16, but these are 8x8"):
        check_network("lenet-5", (1, 8, 8))
    with pytest.raises(ConfigError, match="no square patches tile images of 29x31"):
        check_network("vit", (1, 29, 31))


@pytest.mark.parametrize(
    ("size", "side"), [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((64, 64), 8), ((24, 16), 4), ((29, 31), None)]
)
def test_patches_are_the_smallest_of_which_64_are_enough(size: tuple[int, int], side: int | None) -> None:
    assert patch_side(*size) == side


def test_attention_is_the_softmax_of_scaled_products_in_heads() -> None:
    network = VisionTransformer((1, 8, 8), 10, 32, 1, 2).double()
    attention = network.get_submodule("block1").attention
    tokens = torch.randn(1, 5, 32, dtype=torch.float64)
    query, key, value = (part(tokens[0]) for part in (attention.query, attention.key, attention.value))  # type: ignore[union-attr,operator]
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        shares = torch.softmax(query[:, part] @ key[:, part].T / 4, 1)
        heads.append(shares @ value[:, part])
    expected = attention.out(torch.cat(heads, 1))  # type: ignore[union-attr,operator]
    torch.testing.assert_close(attention(tokens)[0], expected)  # type: ignore[operator]
