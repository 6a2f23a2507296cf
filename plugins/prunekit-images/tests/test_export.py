"""Every network of the task, trained and pruned, gives the same outputs as a program of torch.export and in ONNX."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from prunekit_images.presets import PRESETS

from prunekit.cli import main
from prunekit.deployment.pruned_network import open_pruned

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("network", PRESETS)
def test_exports_of_a_pruned_network_are_equal_to_it(network: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (600, 28, 28), np.uint8), np.arange(600) % 10
    np.savez(tmp_path / "a.npz", x_train=images[:500], y_train=labels[:500], x_test=images[500:], y_test=labels[500:])
    run = str(tmp_path / "run")
    task = ["--task", "images", "--data", str(tmp_path / "a.npz"), "-o", f"task.network={network}"]
    short = ["-o", "training.budget=3 steps", "-o", "training.retraining=3 steps"]
    assert main(["run", *task, "--criterion", "magnitude", *short, "--out", run]) == 0
    for to, name in (("torch-export", "a.pt2"), ("onnx", "a.onnx")):
        assert main(["export", run, "--to", to, "-o", str(tmp_path / name)]) == 0
    for to in ("dense", "sparse", "shrunk"):  # each is proved before it is written
        assert main(["export", run, "--to", to, "-o", str(tmp_path / to)]) == 0

    pruned = open_pruned(run)
    assert pruned.masks.density() < 0.11
    program = torch.export.load(str(tmp_path / "a.pt2")).module()
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5, 32):
        samples = pruned.samples.take(count)
        [images] = samples.arguments
        [expected] = pruned.outputs(samples)
        assert expected.shape == (count, 10)
        assert float(expected.abs().max()) > 0.01
        assert float((program(images) - expected).abs().max()) < 1e-4
        [found] = session.run(None, {"images": images.numpy()})
        assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-4
