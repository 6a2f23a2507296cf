"""Exports: each format read back the way its users do; a file that gives other outputs is never put in place."""

import json
import os
import re
import sys
import zipfile
from pathlib import Path

import attrs
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import prunekit
from prunekit.cli import main
from prunekit.contracts.export_format import Encoded, PrunedNetwork
from prunekit.deployment.export import MODULES
from prunekit.deployment.export.writing import export, find_format
from prunekit.deployment.pruned_network import open_pruned, random_samples
from prunekit.errors import CheckpointError, ConfigError, ExportError, PrunekitError
from prunekit.layers.samples import Samples
from prunekit.masks.masks import Masks
from prunekit.masks.selection import NofM
from prunekit.masks.weight_files import load_weights

pytestmark = pytest.mark.thorough

CODE = """
import torch
from torch import nn
from prunekit.testing import ToyNetwork

def network():
    return ToyNetwork()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.linear = nn.Linear(12, 5)

    def forward(self, tokens, values):
        joined = torch.cat((self.words(tokens).mean(1), values), 1)
        return {"scores": self.linear(joined), "norms": joined.norm(dim=1)}

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, values):
        return self.linear(values) if values.sum() > 0 else values

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, values):
        return self.linear(values).reshape(len(values), 2, 2)[:2 if len(values) == 2 else len(values)]

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, values):
        return {"values": self.linear(values), "name": "linear"}

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, values):
        return self.linear(values) + torch.randn(4)

def normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3))

def single():
    return nn.Linear(4, 4)

def brain():
    return nn.Linear(4, 4, dtype=torch.bfloat16)

def wide():
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
"""

UNITS = ("conv_a.weight", "hidden.weight")


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(CODE)
    return f"{tmp_path / 'models.py'}:"


@pytest.fixture
def pruned(code):
    """Return the toy network with masks, opened from code and files."""
    network = prunekit.testing.ToyNetwork()
    save_file(network.state_dict(), "w.safetensors")
    prunekit.select(network, criterion="random", density=0.1).save("m.safetensors")
    return open_pruned(code + "network", masks="m.safetensors", weights="w.safetensors", inputs=["1x6x6"])


def test_a_dense_export_is_plain_safetensors_with_zeros_where_the_given_weights_had_none(pruned):
    assert all(bool((tensor != 0).all()) for name, tensor in load_file("w.safetensors").items() if "weight" in name)
    exported = export(pruned, "dense", "out.safetensors")
    assert exported.error == 0
    assert exported.size == exported.dense_size == Path("out.safetensors").stat().st_size
    loaded = load_file("out.safetensors")
    for name, mask in pruned.masks.tensors.items():
        assert not loaded[name][~mask].any()
    network = prunekit.testing.ToyNetwork().eval()
    network.load_state_dict(loaded)
    with torch.no_grad():
        assert torch.equal(network(*pruned.samples.arguments), pruned.outputs()[0])


def test_a_sparse_export_is_smaller_and_has_masks_and_weights(pruned):
    exported = export(pruned, "sparse", "out.safetensors")
    assert exported.size < 0.7 * exported.dense_size
    assert prunekit.load_masks("out.safetensors") == pruned.masks
    state = pruned.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_weights("out.safetensors").items())


@pytest.mark.parametrize("to", ["sparse", "csr"])
def test_a_network_without_masks_and_zeros_has_no_sparse_export(code, to):
    dense = open_pruned(code + "network", inputs=["1x6x6"])
    with pytest.raises(ExportError, match=r"has no masks and no zeros, .*export it with --to dense"):
        export(dense, to, "out.safetensors")


def test_a_csr_export_loads_into_a_fresh_network_and_reports_how_each_layer_runs(pruned):
    exported = export(pruned, "csr", "out.safetensors")
    assert exported.error < 1e-5
    assert [note.partition(":")[0] for note in exported.notes] == ["conv_a", "conv_b", "hidden", "classifier"]
    network = prunekit.load_csr("out.safetensors", prunekit.testing.ToyNetwork(), pruned.samples.arguments)
    torch.testing.assert_close(pruned.samples.through(network), pruned.outputs())


def test_a_csr_export_of_a_network_that_is_called_by_keyword(pruned):
    named = attrs.evolve(pruned, samples=Samples((), {"images": pruned.samples.arguments[0]}))
    assert export(named, "csr", "out.safetensors").error < 1e-5


def test_a_shrunk_export_has_smaller_layers_and_loads_into_the_network_at_its_full_size(code):
    network = prunekit.testing.ToyNetwork()
    masks = {name: torch.ones_like(network.get_parameter(name), dtype=torch.bool) for name in UNITS}
    masks["conv_a.weight"][:4] = False
    masks["hidden.weight"][10:] = False
    Masks(masks).save("m.safetensors")
    pruned = open_pruned(code + "network", masks="m.safetensors", inputs=["1x6x6"])
    exported = export(pruned, "shrunk", "out.safetensors")
    assert exported.error < 1e-5
    assert exported.size < exported.dense_size
    assert any(note.startswith("hidden: 16 -> 10 units") for note in exported.notes)
    small = prunekit.load_shrunk(prunekit.testing.ToyNetwork(), "out.safetensors").eval()
    assert small.hidden.weight.shape == (10, 72)
    torch.testing.assert_close(pruned.samples.through(small), pruned.outputs())


def test_a_shrunk_export_says_if_no_unit_was_removed(code):
    pruned = open_pruned(code + "network", inputs=["1x6x6"])
    assert any(note.startswith("no unit was removed") for note in export(pruned, "shrunk", "out.safetensors").notes)


def test_a_program_of_torch_export_runs_without_the_code_at_any_batch_size(pruned):
    exported = export(pruned, "torch-export", "out.pt2")
    assert exported.error < 1e-5
    program = torch.export.load("out.pt2").module()
    for count in (1, 3, 77):
        samples = pruned.samples.take(count)
        torch.testing.assert_close(program(*samples.arguments), pruned.outputs(samples)[0])


def test_a_program_of_torch_export_has_no_pickle_no_inputs_and_no_paths_in_it(pruned):
    export(pruned, "torch-export", "out.pt2")
    with zipfile.ZipFile("out.pt2") as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        weights = json.loads(archive.read(names["data/weights/model_weights_config.json"]))["config"]
        assert weights.keys() == pruned.network.state_dict().keys()
        assert not any(entry["use_pickle"] for entry in weights.values())
        size = len(archive.read(names[f"data/weights/{weights['hidden.weight']['path_name']}"]))
        assert size == 4 * pruned.network.hidden.weight.numel()
        assert archive.read(names["data/sample_inputs/model.pt"]) == b""
        assert b"testing.py" not in archive.read(names["models/model.json"])


def test_an_onnx_file_runs_in_onnxruntime_at_any_batch_size(pruned):
    exported = export(pruned, "onnx", "out.onnx")
    assert exported.error < 1e-5
    session = onnxruntime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    assert [entry.name for entry in session.get_outputs()] == ["output"]
    for count in (1, 3, 77):
        samples = pruned.samples.take(count)
        [found] = session.run(None, {"images": samples.arguments[0].numpy()})
        np.testing.assert_allclose(found, pruned.outputs(samples)[0], rtol=1e-4, atol=1e-5)
    assert b"testing.py" not in Path("out.onnx").read_bytes()


@pytest.mark.parametrize("to", ["torch-export", "onnx"])
def test_token_ids_and_several_arguments_and_outputs_are_exported(code, to):
    pruned = open_pruned(code + "Two", inputs=["7:0..9", "4"])
    assert export(pruned, to, "out.pt2").error < 1e-5


def test_several_outputs_are_numbered_in_onnx(code):
    export(open_pruned(code + "Two", inputs=["7:0..9", "4"]), "onnx", "out.onnx")
    session = onnxruntime.InferenceSession("out.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["tokens", "values"]
    assert [entry.name for entry in session.get_outputs()] == ["output_0", "output_1"]


@pytest.mark.parametrize("to", ["dense", "sparse", "torch-export", "onnx"])
def test_the_same_export_twice_gives_the_same_bytes(pruned, to):
    export(pruned, to, "a.pt2")
    export(pruned, to, "b.pt2")
    assert Path("a.pt2").read_bytes() == Path("b.pt2").read_bytes()


@pytest.fixture
def two_of_four(code):
    """Return a network whose first layer is 2:4."""
    network = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    save_file(network.state_dict(), "w.safetensors")
    masks = prunekit.select(network, criterion="magnitude", density=0.5, pattern=NofM(2, 4))
    Masks({"0.weight": masks.tensors["0.weight"]}).save("m.safetensors")
    return open_pruned(code + "wide", masks="m.safetensors", weights="w.safetensors", inputs=["128"])


def test_a_semi_structured_export_packs_2_of_4_layers_and_names_the_others(two_of_four):
    exported = export(two_of_four, "semi-structured", "out.safetensors")
    assert exported.error == 0
    assert exported.size < 0.65 * exported.dense_size
    assert exported.notes == ("2:4: 0", "dense: 2 is 10 x 64, expected a multiple of 32 x 64")
    packed = load_file("out.safetensors")
    assert packed["0.weight_values"].shape == (64, 64)
    assert packed["0.weight_places"].shape == (64, 16)


def test_a_network_without_2_of_4_layers_is_refused_with_a_reason_per_layer(pruned):
    with pytest.raises(ExportError, match=r"no linear layer .* hidden is 16 x 72, .*prune with --pattern 2:4"):
        export(pruned, "semi-structured", "out.safetensors")
    assert not Path("out.safetensors").exists()


def test_a_pattern_that_is_2_of_4_only_on_average_is_refused(two_of_four):
    with torch.no_grad():
        two_of_four.network[0].weight[3, :8] = torch.tensor([1.0, 1, 1, 0, 1, 0, 0, 0])
    with pytest.raises(ExportError, match="0 keeps 3 of four inputs, expected two"):
        export(two_of_four, "semi-structured", "out.safetensors")


def test_a_program_that_torch_cannot_read_back_is_refused_without_messages_of_torch(code, caplog):
    with pytest.raises(
        ExportError, match=r"torch.export.load cannot read the .*; return only tensors from the network"
    ):
        export(open_pruned(code + "Named", inputs=["4"]), "torch-export", "out.pt2")
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    assert not Path("out.pt2").exists()


def test_a_network_that_is_itself_a_layer_is_called_so(code):
    mask = (torch.arange(16) < 8).reshape(4, 4)
    Masks({"weight": mask}).save("m.safetensors")
    pruned = open_pruned(code + "single", masks="m.safetensors", inputs=["4"])
    for to in ("csr", "shrunk"):
        assert any(note.startswith("the network: ") for note in export(pruned, to, f"out.{to}").notes)


def test_the_line_that_loads_a_file_is_code_whatever_the_path(pruned):
    path = 'odd "name" \\n é.safetensors'
    assert export(pruned, "dense", path).load == (
        r'network.load_state_dict(safetensors.torch.load_file("odd \"name\" \\n é.safetensors"))'
    )


@pytest.mark.parametrize("to", ["torch-export", "onnx"])
@pytest.mark.parametrize("name", ["Branching", "Fixed"])
def test_a_network_that_cannot_be_traced_says_why_in_one_line_and_leaves_no_file(code, to, name):
    pruned = open_pruned(code + name, inputs=["4"])
    with pytest.raises(ExportError, match=f"torch.export cannot trace {name}") as caught:
        export(pruned, to, "out.pt2")
    assert "\n" not in str(caught.value)
    assert {path.name for path in Path().iterdir()} <= {"__pycache__", "models.py"}


def broken(change):
    """Return a format that writes the weights changed."""
    dense = find_format("dense")

    def encode(pruned):
        state = {name: tensor.clone() for name, tensor in pruned.network.state_dict().items()}
        change(state["classifier.bias"])
        return Encoded(prunekit.masks.weight_files.encode_weights(state))

    return attrs.evolve(dense, encode=encode, tolerance=1e-4, load="")


@pytest.mark.parametrize(
    "change", [lambda bias: bias.add_(1e-3), lambda bias: bias.fill_(torch.nan), lambda bias: bias[1:].fill_(torch.inf)]
)
def test_a_file_with_other_outputs_never_replaces_an_existing_one(pruned, monkeypatch, change):
    Path("out").write_text("precious")
    monkeypatch.setattr("prunekit.deployment.export.dense.FORMAT", broken(change))
    with pytest.raises(ExportError, match=r"an output is off by .*nothing was written"):
        export(pruned, "dense", "out", force=True)
    assert Path("out").read_text() == "precious"
    assert not list(Path().glob(".*"))


def test_a_difference_within_the_tolerance_is_reported(pruned, monkeypatch):
    monkeypatch.setattr("prunekit.deployment.export.dense.FORMAT", broken(lambda bias: bias.add_(5e-5)))
    assert 4e-5 < export(pruned, "dense", "out").error < 6e-5


def test_outputs_of_another_shape_are_refused(pruned, monkeypatch):
    dense = find_format("dense")

    def reopen(path, pruned):
        return lambda samples: tuple(output[:, :2] for output in dense.reopen(path, pruned)(samples))

    monkeypatch.setattr(
        "prunekit.deployment.export.dense.FORMAT", attrs.evolve(dense, reopen=reopen, tolerance=1e-4, load="")
    )
    with pytest.raises(ExportError, match=r"as dense, the outputs have the shapes \[32, 2\], expected \[32, 4\]"):
        export(pruned, "dense", "out")


def test_a_network_with_random_outputs_is_refused_as_such(code):
    pruned = open_pruned(code + "Random", inputs=["4"])
    with pytest.raises(ExportError, match=r"returns different outputs for the same inputs, .*remove randomness"):
        export(pruned, "dense", "out")
    assert not Path("out").exists()


def test_large_outputs_may_differ_by_more_than_small_ones(code):
    network = nn.Linear(4, 4).requires_grad_(requires_grad=False)
    network.weight.mul_(1e5)
    pruned = PrunedNetwork(network, Masks({}), {}, random_samples(["4"], torch.float32), "large")
    assert 0 < export(pruned, "onnx", "out.onnx").error < 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_packages_onnx_names_the_extra(pruned, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs the package {package}, .*pip install 'prunekit\[onnx\]'"):
        export(pruned, "onnx", "out.onnx")
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("to", ["dense", "shrunk", "torch-export", "onnx"])
def test_a_parametrized_weight_is_exported_by_formats_that_need_its_value(code, to):
    assert export(normed(code), to, "out.pt2").error < 1e-5


@pytest.mark.parametrize("to", ["sparse", "csr"])
def test_a_parametrized_weight_is_refused_by_formats_that_need_its_zeros(code, to):
    with pytest.raises(PrunekitError, match="remove_parametrizations"):
        export(normed(code), to, "out.safetensors")


def normed(code):
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[:, ::2] = False
    Masks({"0.weight": mask}).save("m.safetensors")
    return open_pruned(code + "normed", masks="m.safetensors", inputs=["6"])


@pytest.mark.parametrize(("dtype", "to"), [("float16", "shrunk"), ("bfloat16", "shrunk"), ("float16", "onnx")])
def test_networks_in_half_precision_may_differ_by_their_rounding(code, dtype, to):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(getattr(torch, dtype))
    with torch.no_grad():
        network[0].weight[::2] = 0
    network.eval().requires_grad_(requires_grad=False)
    pruned = PrunedNetwork(network, Masks({}), {}, random_samples(["64"], getattr(torch, dtype)), dtype)
    assert 1e-5 < export(pruned, to, "out").error < 0.05


def test_a_network_in_bfloat16_is_exported_but_not_to_onnx(code):
    pruned = open_pruned(code + "brain", inputs=["4"])
    assert export(pruned, "dense", "out.safetensors").error == 0
    assert export(pruned, "torch-export", "out.pt2").error == 0
    with pytest.raises(ExportError, match="onnxruntime does not run on a CPU; convert it to float32"):
        export(pruned, "onnx", "out.onnx")


def test_an_unknown_format_names_the_nearest(pruned):
    with pytest.raises(ConfigError, match="there is no export format 'onxx' \\(did you mean 'onnx'\\?\\)"):
        export(pruned, "onxx", "out")


def test_every_format_says_how_to_load_it():
    for name in MODULES:
        assert "{path}" in find_format(name).load


def test_an_existing_file_is_overwritten_only_with_force(pruned):
    export(pruned, "dense", "out")
    with pytest.raises(CheckpointError, match=r"out exists already; overwrite it with --force or choose another"):
        export(pruned, "sparse", "out")
    assert load_file("out").keys() == pruned.network.state_dict().keys()
    export(pruned, "sparse", "out", force=True)
    assert prunekit.load_masks("out") == pruned.masks


RUN = ["run", "--task", "prunekit.testing:ToyTask", "--criterion", "magnitude", "--structure", "hidden=1/4"]
SHORT = ["-o", "training.budget=4 steps", "-o", "training.retraining=2 steps", "--out", "run"]


def test_a_run_is_exported_from_the_command_line_with_its_figures(code, capsys):
    assert main([*RUN, *SHORT]) == 0
    capsys.readouterr()
    assert main(["export", "run", "--to", "sparse", "-o", "out.safetensors"]) == 0
    printed = capsys.readouterr().out
    size, dense = Path("out.safetensors").stat().st_size, Path("run/model.safetensors").stat().st_size
    assert "run: ToyNetwork, 712 of 1,576 prunable weights left (density 0.4518)" in printed
    assert f"out.safetensors: {size:,} bytes, {size / dense:.4g} of the dense file's {dense:,}" in printed
    assert "largest output difference from the masked network: 0\n" in printed
    assert 'load it with: network.load_state_dict(prunekit.load_weights("out.safetensors"))' in printed


def error(capsys, *arguments):
    """Run a command line that must fail, and return the one line it says."""
    assert main(["export", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_user_errors_are_one_line_with_exit_code_2(pruned, code, capsys):
    model = [code + "network", "--input", "1x6x6"]
    unknown = error(capsys, *model, "--to", "onxx", "-o", "out")
    assert "there is no export format 'onxx' (did you mean 'onnx'?)" in unknown
    assert "Missing option '--to'" in error(capsys, *model, "-o", "out")
    assert "Missing option '-o'" in error(capsys, *model, "--to", "dense")
    assert "no run folder 'nothing'" in error(capsys, "nothing", "--to", "dense", "-o", "out")
    assert "give --input" in error(capsys, code + "network", "--to", "dense", "-o", "out")
    assert "no such file" in error(capsys, *model, "--masks", "no", "--to", "dense", "-o", "out")
    Masks({"hidden.weight": torch.ones(3, 3, dtype=torch.bool)}).save("odd.safetensors")
    assert "masks do not fit" in error(capsys, *model, "--masks", "odd.safetensors", "--to", "dense", "-o", "out")
    assert "its folder does not exist" in error(capsys, *model, "--to", "dense", "-o", "no/out")
    assert "is a folder; name a file in it" in error(capsys, *model, "--to", "dense", "-o", ".")
    assert "w.safetensors exists already" in error(capsys, *model, "--to", "dense", "-o", "w.safetensors")
    assert not Path("out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(pruned, code, capsys, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    line = error(capsys, code + "network", "--input", "1x6x6", "--to", "dense", "-o", "closed/out")
    assert "give yourself write permission" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_one_line_and_keeps_the_existing_file(pruned, code, capsys, monkeypatch):
    Path("out").write_text("precious")
    real = os.fsync

    def full(number):
        with Path("/dev/full").open("wb", buffering=0) as disk:
            disk.write(b"x")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    line = error(capsys, code + "network", "--input", "1x6x6", "--to", "dense", "-o", "out", "--force")
    assert re.search("cannot write out: No space left on device; free some space", line)
    assert Path("out").read_text() == "precious"
