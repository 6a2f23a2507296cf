import pytest
import torch
from prunekit_deepid2plus.network import Network, NetworkSettings

import prunekit
from prunekit.deployment.shrinking import coupled_masks, load_shrunk, save_shrunk, shrink


def faces(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 28, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(*, batch_norm: bool) -> Network:
    torch.manual_seed(0)
    network = Network(NetworkSettings(width=1 / 16, feature=16, input_size=(28, 24), batch_norm=batch_norm)).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias") or name.startswith("norm"):
                parameter.normal_()
        network(faces())  # so that normalisation has statistics
    return network.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_half_the_units_of_the_whole_network_go(batch_norm, tmp_path):
    network = trained(batch_norm=batch_norm)
    masks = coupled_masks(network, faces(), 0.5)
    shrunk = shrink(network, faces(), masks)
    halves = {name: sizes.units for name, sizes in shrunk.report.layers.items()}
    assert halves.pop("f") == (16, 16)
    assert all(after == before // 2 for before, after in halves.values())
    assert shrunk.network.local5a.weight.shape == (5, 4, 8, 8, 3, 3)
    masks.apply(network)
    torch.testing.assert_close(shrunk.network(faces(5)), network(faces(5)), rtol=1e-10, atol=1e-10)
    save_shrunk(tmp_path / "small.safetensors", shrunk.network)
    loaded = load_shrunk(network, tmp_path / "small.safetensors")
    assert torch.equal(loaded(faces()), shrunk.network(faces()))


def test_channels_are_ranked_by_the_scores_at_all_positions_and_go_from_all_with_their_biases():
    network = trained(batch_norm=False)
    masks = prunekit.select(network, density={"local5a": 0.25}, pattern="channels", batches=[faces()])
    sums = network.local5a.weight.abs().sum((0, 1, 3, 4, 5))
    kept = torch.zeros(16, dtype=torch.bool)
    kept[sums.topk(4).indices] = True
    rows = masks.tensors["local5a.weight"].movedim(2, 0).flatten(1)
    assert torch.equal(rows.all(1), kept)
    assert torch.equal(rows.any(1), kept)
    assert masks.tensors.keys() == {"local5a.weight", "local5a.bias"}
    assert torch.equal(masks.tensors["local5a.bias"], kept.expand(network.local5a.bias.shape))
    assert shrink(network, faces(), masks).report.layers["local5a"].units == (16, 4)


def test_constants_of_each_position_are_folded_where_that_position_reads_them():
    network = trained(batch_norm=False)
    masks = prunekit.select(network, density={"local5a": 0.5, "conv4b": 0.5}, pattern="units")
    masks.apply(network)
    network.local5a.weight[:, :, :2] = 0  # at all positions, with biases of their own
    network.local5a.bias[:, :, 0] = 0.25  # one of the two is the same everywhere
    shrunk = shrink(network, faces())
    assert shrunk.report.layers["local5a"].units == (16, 15)
    assert shrunk.report.layers["conv4b"].units == (16, 8)
    torch.testing.assert_close(shrunk.network(faces(5)), network(faces(5)), rtol=1e-10, atol=1e-10)
