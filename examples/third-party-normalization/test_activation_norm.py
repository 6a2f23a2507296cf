"""A network with the normalisation shrinks like one with batch normalisation, through the installed plugin."""

from pathlib import Path

import torch
from activation_norm import ActivationNorm
from torch import nn

import prunekit


def make() -> nn.Sequential:
    """Return a network whose normalisation follows 16 channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), ActivationNorm(16), nn.ReLU(), nn.Conv2d(16, 4, 3)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def test_its_channels_are_removed_and_the_outputs_are_equal(tmp_path: Path) -> None:
    """Half of the filters have no connections; their constant shift is folded into biases."""
    network, images = make(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    masks = prunekit.select(network, density={"0": 0.5}, pattern="units")
    small = prunekit.shrink(network, images, masks).network
    assert [len(small.get_parameter(name)) for name in ("1.scale", "1.shift")] == [8, 8]
    masks.apply(network)
    torch.testing.assert_close(small(images), network(images), rtol=1e-12, atol=1e-12)
    prunekit.save_shrunk(tmp_path / "small.safetensors", small)
    assert torch.equal(prunekit.load_shrunk(make(), tmp_path / "small.safetensors")(images), small(images))


def test_its_parameters_are_dropped_with_its_channels() -> None:
    """Masks of whole channels cover the scale and the shift."""
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    masks = prunekit.select(make(), density={"0": 0.5}, pattern="channels", batches=[images])
    assert [int(masks.tensors[name].sum()) for name in ("0.bias", "1.scale", "1.shift")] == [8, 8, 8]
