"""The task's networks, pruned, give the same features as a program of torch.export and in ONNX."""

from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch
from prunekit_deepid2plus import embedded
from prunekit_deepid2plus.embedded import Group
from prunekit_deepid2plus.network import Network, NetworkSettings
from prunekit_deepid2plus.plugin import prunekit_layer_views

import prunekit
from prunekit.cli import main
from prunekit.contracts.export_format import PrunedNetwork
from prunekit.deployment.export.writing import export
from prunekit.deployment.pruned_network import open_pruned, random_samples
from prunekit.layers.lookup import find_layers
from prunekit.layers.torch_views import core_view
from prunekit.masks.masks import Masks
from prunekit.plugins.manager import make_manager, view_of


def check_exports(pruned: PrunedNetwork, folder: Path) -> None:
    program = torch.export.load(str(folder / "a.pt2")).module()
    session = onnxruntime.InferenceSession(str(folder / "a.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        samples = pruned.samples.take(count)
        [images] = samples.arguments
        [expected] = pruned.outputs(samples)
        assert len(expected) == count
        assert float(expected.abs().max()) > 0.01
        assert float((program(images) - expected).abs().max()) < 1e-4
        [found] = session.run(None, {"images": images.numpy()})
        assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("to", ["dense", "sparse", "csr", "shrunk"])
def test_the_line_that_is_printed_loads_the_file(to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(width=1 / 8, feature=32, input_size=(28, 24))
    network = Network(settings).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    masks = Masks({"local5b.weight": torch.rand(network.local5b.weight.shape, generator=generator) < 0.01})
    masks.apply(network)
    views = view_of(make_manager())
    samples = random_samples(["3x28x24"], torch.float32)
    pruned = PrunedNetwork(network, masks, find_layers(network, views), samples, "small", views)
    names = {
        "prunekit": prunekit,
        "safetensors": safetensors,
        "network": Network(settings).eval(),
        "sample_input": samples.arguments[0],
    }
    exec(export(pruned, to, tmp_path / "file").load, names)  # noqa: S102 - as a user does who pastes it
    with torch.no_grad():
        torch.testing.assert_close(names["network"](*samples.arguments), *pruned.outputs(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "features"),
    [
        (["-o", "task.width=0.25"], 64),
        (["-o", "task.width=0.25", "-o", "task.batch_norm=false", "-o", "task.feature_relu=true"], 64),
        (["-o", "task.patches=whole eyes@120:grey nose", "--structure", "f=1/64 5b=1/16 5a=1/8"], 3 * 64),
    ],
)
def test_exports_of_a_pruned_run_are_equal_to_it(
    options: list[str], features: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "TRAIN", Group(0, 12, 3))
    monkeypatch.setattr(embedded, "CALIBRATION", Group(1000, 40, 1))
    monkeypatch.setattr(embedded, "TEST", Group(2000, 12, 3))
    run = str(tmp_path / "run")
    task = ["--task", "deepid2plus", "-o", "task.batch_people=5", "-o", "task.feature=64", "--criterion", "correlation"]
    short = ["-o", "training.budget=3 steps", "-o", "training.retraining=2 steps"]
    assert main(["run", *task, *options, *short, "--out", run]) == 0
    for to, name in (("torch-export", "a.pt2"), ("onnx", "a.onnx")):
        assert main(["export", run, "--to", to, "-o", str(tmp_path / name)]) == 0
    for to in ("dense", "sparse", "csr", "shrunk"):  # each is proved before it is written
        assert main(["export", run, "--to", to, "-o", str(tmp_path / to)]) == 0
    pruned = open_pruned(run)
    assert pruned.outputs()[0].shape == (32, features)
    check_exports(pruned, tmp_path)


@pytest.mark.slow
def test_the_papers_network_at_full_size_is_exported_and_its_sparse_file_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network(NetworkSettings()).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.running_mean.normal_(generator=generator)
    densities = {"f": 1 / 256, "local5b": 1 / 128, "local5a": 1 / 32}
    views = find_layers(network, lambda module: core_view(module) or prunekit_layer_views(module))
    masks = Masks(
        {
            f"{name}.weight": torch.rand(views[name].weight.shape, generator=generator) < density
            for name, density in densities.items()
        }
    )
    masks.apply(network)
    samples = random_samples(["3x112x96"], torch.float32).take(5)
    pruned = PrunedNetwork(network, masks, views, samples, "the paper's network")
    export(pruned, "torch-export", tmp_path / "a.pt2")
    export(pruned, "onnx", tmp_path / "a.onnx")
    check_exports(pruned, tmp_path)
    sparse = export(pruned, "sparse", tmp_path / "a.safetensors")
    assert sparse.size < 0.16 * sparse.dense_size
