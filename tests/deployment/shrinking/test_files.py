import json
import struct

import onnxruntime
import pytest
import torch
from torch import nn

from prunekit.cli import main
from prunekit.deployment.shrinking import load_shrunk, save_shrunk, shrink
from prunekit.errors import CheckpointError


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 3)
    )
    with torch.no_grad():
        layers[0].weight[1] = 0
        layers[1].bias.fill_(1)
        layers[4].weight[2:4] = 0
    return layers.eval()


@pytest.fixture
def saved(tmp_path):
    """Return the path of a file, and the network saved in it."""
    shrunk = shrink(network(), torch.randn(2, 2, 6, 6)).network
    save_shrunk(tmp_path / "small.safetensors", shrunk)
    return tmp_path / "small.safetensors", shrunk


def test_a_loaded_network_is_the_saved_one(saved):
    path, shrunk = saved
    dense = network()
    loaded = load_shrunk(dense, path)
    assert str(loaded) == str(shrunk)
    assert loaded[4].bias is not None
    inputs = torch.randn(3, 2, 6, 6)
    assert torch.equal(loaded(inputs), shrunk(inputs))
    assert dense[0].out_channels == 4


def test_convolutions_keep_the_channels_last_memory_order(tmp_path):
    dense = network().to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 2, 6, 6)
    shrunk = shrink(dense, inputs).network
    assert shrunk[0].weight.shape == (3, 2, 3, 3)
    save_shrunk(tmp_path / "small.safetensors", shrunk)
    for small in (shrunk, load_shrunk(dense, tmp_path / "small.safetensors")):
        assert small[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert small[0](inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.thorough
def test_a_function_that_loads_a_shrunk_network_can_be_exported(saved, tmp_path, monkeypatch):
    path, shrunk = saved
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(
        "from prunekit import load_shrunk\n"
        "from torch.nn import *\n"
        "def make_small():\n"
        "    layers = Conv2d(2, 4, 3), BatchNorm2d(4), ReLU(), Flatten(), Linear(64, 8, bias=False), Linear(8, 3)\n"
        f"    return load_shrunk(Sequential(*layers), {path.name!r})\n"
    )
    assert main(["export", "small.py:make_small", "--input", "2x6x6", "--to", "onnx", "-o", "small.onnx"]) == 0
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    inputs = torch.randn(3, 2, 6, 6)
    [outputs] = session.run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), shrunk(inputs))


def test_the_same_network_gives_the_same_bytes(saved, tmp_path):
    path, shrunk = saved
    save_shrunk(tmp_path / "again.safetensors", shrunk)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def changed(path, change):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    entry = json.loads(header["__metadata__"]["prunekit"])
    change(entry)
    header["__metadata__"]["prunekit"] = json.dumps(entry)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("format"), "no format version"),
        (lambda entry: entry.update(format=2), "this version reads format 1; update prunekit"),
        (lambda entry: entry.update(layers=[]), "no layers or no followers"),
        (lambda entry: entry["layers"].update({"0": 3}), "sizes of '0'"),
        (lambda entry: entry["layers"]["0"].update(outputs=0), "sizes of '0'"),
        (lambda entry: entry["layers"]["0"].update(bias=1), "sizes of '0'"),
        (lambda entry: entry["followers"].update({"1": -1}), "size of '1'"),
        (
            lambda entry: entry["layers"]["0"].update(outputs=5),
            r"'0' has sizes \(1, 5, 2\), but the network's are \(1, 4, 2\)",
        ),
        (
            lambda entry: entry["layers"]["0"].update(outputs=2),
            r"0.weight has shape \[3, 2, 3, 3\], but .* require \[2, 2, 3, 3\]",
        ),
        (
            lambda entry: entry["layers"].update({"7": entry["layers"]["0"]}),
            "has sizes for '7', but the network has no such layer",
        ),
        (lambda entry: entry["followers"].update({"1": 9}), "9 channels do not fit '1'"),
        (lambda entry: entry["layers"]["5"].update(bias=False), "differ in 5.bias"),
    ],
)
def test_a_file_with_a_false_header_is_an_error(saved, change, message):
    path, _ = saved
    changed(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_shrunk(network(), path)


def test_a_file_of_another_kind_is_an_error(tmp_path):
    from prunekit.masks.weight_files import save_weights

    save_weights(tmp_path / "dense.safetensors", network().state_dict())
    with pytest.raises(CheckpointError, match="is a file of plain weights, not a shrunk network"):
        load_shrunk(network(), tmp_path / "dense.safetensors")


def test_a_file_of_another_network_is_an_error(saved):
    path, _ = saved
    with pytest.raises(CheckpointError, match="pass the network that was shrunk, in its full size"):
        load_shrunk(nn.Sequential(nn.Linear(3, 3)), path)
