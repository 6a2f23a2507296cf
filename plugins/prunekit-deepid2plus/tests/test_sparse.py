import pytest
import safetensors.torch
import torch
from prunekit_deepid2plus.local import LocallyConnected2d, LocalView
from prunekit_deepid2plus.network import Network, NetworkSettings
from torch import nn

from prunekit.deployment.sparse import SparseLayer, load_csr, run_sparse, save_csr
from prunekit.deployment.sparse.unrolling import unroll
from prunekit.masks.masks import Masks

PAPER = {"f.weight": 1 / 256, "local5b.weight": 1 / 128, "local5a.weight": 1 / 32}


def masks_for(network, densities):
    generator = torch.Generator().manual_seed(0)
    shapes = {name: network.get_parameter(name).shape for name in densities}
    return Masks({name: torch.rand(shapes[name], generator=generator) < densities[name] for name in densities})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_locally_connected_layer_is_one_matrix_with_a_block_for_each_position(stride, bias):
    torch.manual_seed(0)
    layer = LocallyConnected2d(3, 4, (7, 6), 3, stride, bias=bias).double().eval().requires_grad_(False)
    if bias:
        nn.init.normal_(layer.bias)
    layer.weight.mul_(torch.rand(layer.weight.shape) < 0.3)
    product = unroll(LocalView(layer), (3, 7, 6))
    assert len(product.matrix.values) == layer.weight.count_nonzero()
    images = torch.randn(5, 3, 7, 6, dtype=torch.float64)
    for form in product.forms:
        torch.testing.assert_close(product(images, form), layer(images))
        torch.testing.assert_close(product(images.to(memory_format=torch.channels_last), form), layer(images))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_network_gives_the_same_features_with_every_layer_sparse(batch_norm):
    torch.manual_seed(0)
    network = Network(NetworkSettings(width=1 / 8, feature=32, input_size=(28, 24), batch_norm=batch_norm)).eval()
    names = [
        f"{name}.weight" for name, _ in network.named_children() if name.startswith(("conv", "local")) or name == "f"
    ]
    masks = masks_for(network, dict.fromkeys(names, 0.3))
    faces = torch.randn(3, 3, 28, 24)
    sparse, reports = run_sparse(network, masks, faces, form="csr")
    assert len(reports) == len(names) == 11
    assert not any(report.reason for report in reports)
    masks.apply(network)
    with torch.no_grad():
        torch.testing.assert_close(sparse(faces), network(faces), atol=1e-5, rtol=1e-4)


def test_the_papers_smallest_network_is_a_file_of_less_than_a_sixth_and_runs_sparse_from_it(tmp_path):
    torch.manual_seed(0)
    network = Network(NetworkSettings()).eval()
    masks = masks_for(network, PAPER)
    masks.apply(network)
    faces = torch.randn(1, 3, 112, 96)
    _, reports = run_sparse(network, masks, faces, form="csr")
    save_csr(tmp_path / "sparse", network, masks, reports)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "dense")
    assert (tmp_path / "sparse").stat().st_size <= 0.16 * (tmp_path / "dense").stat().st_size
    loaded = load_csr(tmp_path / "sparse", Network(NetworkSettings()), faces)
    assert {name for name, module in loaded.named_modules() if isinstance(module, SparseLayer)} == {
        name.removesuffix(".weight") for name in PAPER
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(faces), network(faces), atol=1e-4, rtol=1e-4)
