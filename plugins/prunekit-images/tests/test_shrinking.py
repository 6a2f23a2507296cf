import re

import pytest
import torch
from prunekit_images.networks import build_network
from torch import nn

import prunekit
from prunekit.cli import main
from prunekit.deployment.shrinking import coupled_masks, coupled_units, shrink

SHAPE = (3, 16, 16)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(name: str, width: int | None = 16, blocks: int | None = 1) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(name, SHAPE, 10, width, blocks).double()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.normal_()
        network(images(8))
    return network.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet", "vit"])
def test_every_network_computes_the_same_without_half_its_units(name):
    network = trained(name)
    masks = prunekit.select(network, density=0.5, pattern="units", keep_dense=["last"])
    shrunk = shrink(network, images(), masks)
    masks.apply(network)
    torch.testing.assert_close(shrunk.network(images(5)), network(images(5)), rtol=1e-10, atol=1e-10)
    assert shrunk.report.weights[1] < 0.9 * shrunk.report.weights[0]


def test_a_stream_of_the_residual_network_goes_as_one():
    network = trained("resnet")
    groups = {tuple(group) for group in coupled_units(network, images())}
    assert ("conv", "block1.conv2") in groups
    assert ("block2.conv2", "block2.shortcut") in groups
    shrunk = shrink(network, images(), coupled_masks(network, images(), 0.5))
    before, after = zip(*(sizes.units for name, sizes in shrunk.report.layers.items() if name != "fc"), strict=True)
    assert [2 * count for count in after] == list(before)
    assert not any(sizes.constant_units for sizes in shrunk.report.layers.values())


@pytest.mark.parametrize(("name", "left"), [("resnet", 0.28), ("vit", 0.7)])
def test_a_run_that_prunes_channels_is_exported_without_them(tmp_path, capsys, name, left):
    out, file = str(tmp_path / "run"), str(tmp_path / "small.safetensors")
    short = [f"-o{setting}" for setting in ("training.budget=4 steps", "training.retraining=2 steps", "task.width=8")]
    asked = ["--pattern", "channels", "--density", "0.5", "--criterion", "magnitude", "--schedule", "one-shot"]
    assert main(["run", "--task", "images", f"-otask.network={name}", *short, *asked, "--out", out]) == 0
    assert main(["export", out, "--to", "shrunk", "--out", file]) == 0
    printed = capsys.readouterr().out
    assert "constant unit" not in printed
    before, after = re.search(r"all layers: .* units, ([\d,]+) -> ([\d,]+) weights", printed).groups()
    assert int(after.replace(",", "")) < left * int(before.replace(",", ""))


def test_the_hidden_layers_of_a_transformer_shrink_and_attention_stays():
    network = trained("vit")
    shrunk = shrink(network, images(), coupled_masks(network, images(), 0.25))
    assert shrunk.report.layers["block1.fc1"].units == (64, 16)
    assert shrunk.report.layers["block1.attention.value"].units == (16, 16)
