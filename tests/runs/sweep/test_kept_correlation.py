import torch

from prunekit.contracts.seeds import Seeds
from prunekit.criteria.correlation import Correlation
from prunekit.masks.selection import Quota, keep_best
from prunekit.runs.sweep.kept_correlation import kept_correlation
from prunekit.runs.training.hardware import Hardware


def test_it_is_the_mean_over_kept_connections_and_positions_of_the_absolute_correlation(toy_run):
    _, prepared, _ = toy_run({"structure": "hidden=1/2", "training": {"budget": "8 steps", "retraining": "2 steps"}})
    network = prepared.network.eval()
    batches = [prepared.task.batches("calibration", 0, Seeds(1))[index][0] for index in range(3)]
    with torch.no_grad():
        images = torch.cat(batches)
        below = network.relu_b(network.conv_b(network.relu_a(network.conv_a(images)))).flatten(1)
        above = network.relu_hidden(network.hidden(below))
        first = network.relu_a(network.conv_a(images)).permute(2, 3, 1, 0).flatten(0, 1)
        patches = torch.nn.functional.unfold(images, 3, padding=1).permute(2, 1, 0)

    def of(outputs, inputs):
        both = torch.corrcoef(torch.cat([outputs, inputs]).double()).nan_to_num(0.0)
        return both[: len(outputs), len(outputs) :].abs()

    masks = {
        name: prepared.views[name].from_matrix(keep_best(torch.rand(1, outputs, fan), Quota(0.3, (fan,))))
        for name, outputs, fan in (("hidden", 16, 72), ("conv_a", 8, 9))
    }
    expected = {
        "hidden": of(above.T, below.T)[masks["hidden"]].mean(),
        "conv_a": torch.stack([of(a, b) for a, b in zip(first, patches, strict=True)])
        .mean(0)[masks["conv_a"].flatten(1)]
        .mean(),
    }
    hardware = Hardware.of("cpu", prepared.training)
    found = kept_correlation(prepared, hardware, Seeds(1), masks, Correlation)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert abs(found[name] - float(value)) < 1e-6
