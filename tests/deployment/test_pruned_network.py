"""Opening a pruned network: from a run folder, or from code and files."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunekit.contracts.seeds import Seeds
from prunekit.deployment.pruned_network import open_pruned
from prunekit.errors import CheckpointError, ConfigError, MaskError
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.weight_files import save_sparse
from prunekit.testing import ToyNetwork

SHORT = {"structure": "hidden=1/4 b=1/2", "training": {"budget": "4 steps", "retraining": "2 steps"}}
CODE = """
import warnings
import torch
import torch.nn.utils.prune
from torch import nn

def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def tokens():
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, left, right):
        return self.linear(left) + right

def normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)))

def text():
    return "network"

def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))

def several():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False))

def nowhere():
    return nn.Linear(6, 8, device="meta")

def script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would like to do without scripts
        return torch.jit.script(small())

def hooked():
    network = small()
    nn.utils.prune.l1_unstructured(network[0], "weight", 0.5)
    return network

def elsewhere():
    return small().cuda()

def compiled():
    return torch.compile(small())

def needs(size):
    return nn.Linear(size, size)
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "models.py").write_text(CODE)
    return f"{tmp_path / 'models.py'}:"


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("**/*")
        if path.is_file()
    }


@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_folder_gives_the_trained_network_its_masks_and_calibration_inputs(toy_run, sparse):
    _, prepared, folder = toy_run({**SHORT, "sparse_model": sparse})
    before = digests(folder.path)
    pruned = open_pruned(str(folder.path))
    assert digests(folder.path) == before
    assert not pruned.network.training
    trained = prepared.network.eval()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(pruned.network.state_dict()[name], tensor)
    assert pruned.masks == load_masks(folder.masks)
    assert list(pruned.views) == ["conv_a", "conv_b", "hidden", "classifier"]
    images = prepared.task.batches("calibration", 0, Seeds(0))[0][0]
    assert torch.equal(pruned.samples.arguments[0], images[:32])
    with torch.no_grad():
        assert torch.equal(pruned.outputs()[0], trained(images[:32]))
    assert {name: mask.shape for name, mask in pruned.layer_masks().items()} == {
        "hidden": (16, 72),
        "conv_b": (8, 4, 3, 3),
    }
    assert str(pruned) == f"{folder.path}: ToyNetwork, 568 of 1,576 prunable weights left (density 0.3604)"


def test_a_dense_run_has_no_masks(toy_run):
    _, _, folder = toy_run({**SHORT, "dense": True})
    pruned = open_pruned(str(folder.path))
    assert not pruned.masks.tensors
    assert pruned.layer_masks() == {}


def test_a_run_without_a_model_says_how_to_finish_it(toy_run):
    _, _, folder = toy_run(SHORT)
    folder.model.unlink()
    with pytest.raises(CheckpointError, match=f"finish it with: prunekit run --resume {folder.path}"):
        open_pruned(str(folder.path))


def test_a_folder_without_a_run_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="contains no run"):
        open_pruned(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no run folder 'runs/nothing'; name one, or a model as file\.py:function"):
        open_pruned("runs/nothing")


def test_options_of_models_are_refused_for_a_run_folder(tmp_path):
    with pytest.raises(ConfigError, match="is a run folder, which has masks"):
        open_pruned(str(tmp_path), inputs=["3"])


def test_masks_are_applied_to_given_weights_that_are_not_zero_where_they_drop(code, tmp_path):
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    mask = torch.rand(8, 6) < 0.5
    Masks({"module.0.weight": mask}).save(tmp_path / "m.safetensors")
    pruned = open_pruned(
        code + "small", masks=tmp_path / "m.safetensors", weights=tmp_path / "w.safetensors", inputs=["6"]
    )
    weight = pruned.network.state_dict()["0.weight"]
    assert torch.equal(weight[mask], network[0].weight.detach()[mask])
    assert not weight[~mask].any()
    assert list(pruned.masks.tensors) == ["0.weight"]
    assert torch.equal(pruned.layer_masks()["0"], mask)


def test_without_masks_zero_weights_are_dropped_also_in_a_sparse_checkpoint(code, tmp_path):
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = Masks({"0.weight": torch.rand(8, 6) < 0.5})
    save_sparse(tmp_path / "w.safetensors", network.state_dict(), masks)
    pruned = open_pruned(code + "small", weights=tmp_path / "w.safetensors", inputs=["6"])
    assert pruned.masks == masks


def test_the_same_model_has_the_same_weights_every_time_and_the_generator_is_unchanged(code):
    state = torch.get_rng_state()
    first, second = (open_pruned(code + "small", inputs=["6"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(first.outputs(), second.outputs(), strict=True))


def test_lazy_layers_get_their_shapes_and_the_same_weights_every_time(code):
    first, second = (open_pruned(code + "lazy", inputs=["6"]) for _ in range(2))
    assert first.network[0].weight.shape == (8, 6)
    assert not any(parameter.requires_grad for parameter in first.network.parameters())
    assert torch.equal(first.outputs()[0], second.outputs()[0])


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")  # torch's own, when it compiles
def test_a_compiled_model_is_the_one_that_was_compiled(code):
    pruned, plain = (open_pruned(code + name, inputs=["6"]) for name in ("compiled", "small"))
    assert type(pruned.network) is nn.Sequential
    assert torch.equal(pruned.outputs()[0], plain.outputs()[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_brought_to_the_cpu(code):
    assert open_pruned(code + "elsewhere", inputs=["6"]).outputs()[0].device.type == "cpu"


def test_token_ids_and_several_arguments_are_given_in_order(code):
    assert open_pruned(code + "tokens", inputs=["3:0..9"]).outputs()[0].shape == (32, 2)
    assert open_pruned(code + "Two", inputs=["4", "2"]).outputs()[0].shape == (32, 2)


def test_the_mask_of_a_computed_weight_is_that_of_its_layer(code, tmp_path):
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[:, ::2] = False
    Masks({"0.weight": mask}).save(tmp_path / "m.safetensors")
    pruned = open_pruned(code + "normed", masks=tmp_path / "m.safetensors", inputs=["6"])
    assert torch.equal(pruned.network[0].weight != 0, mask)
    assert torch.equal(pruned.layer_masks()["0"], mask)


def test_a_module_on_the_path_is_a_model_too():
    pruned = open_pruned("prunekit.testing:ToyNetwork", inputs=["1x6x6"])
    assert isinstance(pruned.network, ToyNetwork)


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("small", [], "needs the shape of a sample; give --input"),
        ("small", ["7"], r"cannot be called with inputs of \[32, 7\]: RuntimeError.*; give one --input"),
        (
            "several",
            ["6"],
            r"cannot be called with inputs of \[1, 6\]: ValueError: .*must accept a single sample",
        ),
        ("nowhere", ["6"], "cannot be called .*Cannot copy out of meta tensor"),
        ("script", ["6"], "'.*:script' is a TorchScript module, .*name the module it was"),
        ("Two", ["4"], "one --input for each argument"),
        ("smal", ["6"], "did you mean 'small'"),
        ("text", ["6"], "returned a str, expected a torch.nn.Module"),
        ("hooked", ["6"], "keeps masks beside dense weights; call torch.nn.utils.prune.remove"),
        ("needs", ["6"], "cannot be called without arguments: TypeError"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(code, name, inputs, words):
    with pytest.raises(ConfigError, match=words):
        open_pruned(code + name, inputs=inputs)


def test_masks_and_weights_that_do_not_fit_name_their_file(code, tmp_path):
    save_file({"0.weight": torch.zeros(8, 5)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w\.safetensors: its weights do not fit.*0\.bias is missing"):
        open_pruned(code + "small", weights=tmp_path / "w.safetensors", inputs=["6"])
    Masks({"0.weight": torch.ones(8, 5, dtype=torch.bool)}).save(tmp_path / "m.safetensors")
    with pytest.raises(MaskError, match=r"m\.safetensors: masks do not fit the model"):
        open_pruned(code + "small", masks=tmp_path / "m.safetensors", inputs=["6"])
