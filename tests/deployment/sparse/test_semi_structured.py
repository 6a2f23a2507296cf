"""2:4 weights: packed, as files, and what torch's kernels make of them."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from prunekit.deployment.sparse.semi_structured import encode, load_semi_structured, pack, read, unpack, weight_problem
from prunekit.errors import CheckpointError, ConfigError


def two_of_four(rows, columns, seed, dtype=torch.float32):
    """Return a random weight with none, one or two kept of every four inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns // 4, 4, generator=generator)
    order = torch.rand(weight.shape, generator=generator).argsort(-1)
    kept = torch.randint(0, 3, weight.shape[:2], generator=generator).unsqueeze(-1)
    return torch.where(order < kept, weight, 0).flatten(1).to(dtype)


def packed_slowly(weight):
    """Pack one value after another."""
    values, places = [], []
    for row in weight.tolist():
        halves = []
        for start in range(0, len(row), 4):
            group = row[start : start + 4]
            kept = [place for place in range(4) if group[place] != 0]
            first, second = sorted((kept + [place for place in range(4) if group[place] == 0])[:2])
            values += [group[first], group[second]]
            halves.append(first + 4 * second)
        places += [low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True)]
    rows = len(weight)
    return torch.tensor(values).reshape(rows, -1), torch.tensor(places, dtype=torch.uint8).reshape(rows, -1)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9).map(lambda n: 8 * n), seed=st.integers(0, 10**6))
def test_packing_equals_the_reference_and_unpacking_restores_the_weight(rows, columns, seed):
    weight = two_of_four(rows, columns, seed)
    values, places = pack(weight)
    expected = packed_slowly(weight)
    assert torch.equal(values, expected[0])
    assert torch.equal(places, expected[1])
    assert torch.equal(unpack(values, places), weight)


def test_packing_keeps_infinities_and_nans():
    weight = torch.tensor([[0, torch.inf, 0, torch.nan, -1, 0, 0, 0]])
    assert torch.equal(unpack(*pack(weight)).nan_to_num(7), weight.nan_to_num(7))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((32, 64), ""),
        ((64, 128), ""),
        ((16, 64), "is 16 x 64, expected a multiple of 32 x 64"),
        ((32, 96), "is 32 x 96, expected a multiple of 32 x 64"),
    ],
)
def test_only_shapes_that_all_kernels_support_are_packed(shape, problem):
    assert weight_problem(two_of_four(*shape, seed=0)) == problem


def test_a_third_kept_weight_of_four_is_found_at_every_position():
    weight = two_of_four(32, 64, seed=0)
    assert weight_problem(weight) == ""
    weight[31, 60:] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert weight_problem(weight) == "keeps 3 of four inputs, expected two"


def through_torch(weight):
    return sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_keeps_weights_that_pass_the_check_and_silently_truncates_others(dtype):
    weight = two_of_four(32, 64, seed=1, dtype=dtype)
    assert torch.equal(through_torch(weight), weight)
    weight[5, 4:8] = torch.ones(4, dtype=dtype)
    assert weight_problem(weight)
    assert int((through_torch(weight) != weight).sum()) == 2


def test_torch_keeps_one_of_two_in_single_precision_so_it_is_refused():
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0]).repeat(32, 16)
    assert weight_problem(weight) == ""
    assert not torch.equal(through_torch(weight), weight)
    with pytest.raises(ConfigError, match=r"dtype is torch\.float32, but 2:4 kernels run in float16 and bfloat16"):
        load_semi_structured("x.safetensors", nn.Linear(64, 32), dtype=torch.float32)


@pytest.fixture
def state():
    return {
        "0.weight": two_of_four(32, 64, seed=2),
        "0.bias": torch.randn(32, generator=torch.Generator().manual_seed(3)),
        "1.running_mean": torch.arange(3.0),
    }


def test_a_file_gives_back_every_bit(tmp_path, state):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(state, {"0.weight"}))
    weights, packed = read(path)
    assert packed == ["0.weight"]
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())
    assert path.read_bytes() == encode(state, {"0.weight"})


def test_a_packed_weight_takes_17_of_32_bits():
    weight = two_of_four(256, 1024, seed=0)
    size, dense = len(encode({"w": weight}, {"w"})), weight.numel() * 4
    assert 0.53 < size / dense < 0.54  # half the values, and four bits for each two of them


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_a_gpu_the_loader_says_what_to_do_and_changes_nothing(tmp_path, state, device):
    path, network = tmp_path / "m.safetensors", network_of_state()
    path.write_bytes(encode(state, {"0.weight"}))
    before = network[0].weight.clone()
    with pytest.raises(ConfigError, match=r"need a CUDA device.*--to csr"):
        load_semi_structured(path, network, device)
    assert torch.equal(network[0].weight, before)


def network_of_state():
    network = nn.Sequential(nn.Linear(64, 32), nn.Module())
    network[1].register_buffer("running_mean", torch.zeros(3))
    return network


def test_a_file_of_another_network_is_refused(tmp_path, state):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(state, {"0.weight"}))
    with pytest.raises(CheckpointError, match=r"m\.safetensors: its weights do not fit .*give the network that was"):
        load_semi_structured(path, nn.Sequential(nn.Linear(64, 16)))
    path.write_bytes(encode({"0.weight": two_of_four(32, 64, seed=0)}, {"0.weight"}))
    with pytest.raises(CheckpointError, match=r"0\.weight belongs to a Embedding, expected a Linear"):
        load_semi_structured(path, nn.Sequential(nn.Embedding(32, 64)))
    path.write_bytes(encode({"0.weight": two_of_four(8, 64, seed=0)}, {"0.weight"}))
    with pytest.raises(CheckpointError, match=r"0\.weight is 8 x 64, expected a multiple"):
        load_semi_structured(path, nn.Sequential(nn.Linear(64, 8, bias=False)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_loaded_layers_run_sparse_and_give_what_dense_ones_give(tmp_path):
    network = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).requires_grad_(requires_grad=False)
    network[0].weight.copy_(two_of_four(64, 128, seed=4))
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(network.state_dict(), {"0.weight"}))
    inputs = torch.randn(32, 128, device="cuda", dtype=torch.float16)
    expected = network.to("cuda", torch.float16)(inputs)
    found = load_semi_structured(path, nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)))
    assert isinstance(found[0].weight.data, torch.sparse.SparseSemiStructuredTensor)
    torch.testing.assert_close(found(inputs), expected, atol=1e-2, rtol=1e-2)


def rewritten(path, tensors=None, **header):
    """Write the file again with some tensors and entries of the header changed; ``None`` takes one away."""
    with safetensors.safe_open(path, "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()} | (tensors or {})  # noqa: SIM118 - it is no mapping
        entry = json.loads(file.metadata()["prunekit"]) | header
    kept = {key: tensor for key, tensor in kept.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, {"prunekit": json.dumps(entry)})


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({}, {"kind": "csr"}, "is a csr export, not a 2:4 export"),
        ({}, {"format": 2}, "is a 2:4 export of format 2"),
        ({}, {"packed": "0.weight"}, "lists no packed weights"),
        ({}, {"packed": [["0.weight"]]}, "lists no packed weights"),
        ({}, {"packed": ["0.weight", "1.weight"]}, r"1\.weight_places, 1\.weight_values are missing"),
        ({"0.weight_values": None}, {}, r"0\.weight_values are missing"),
        ({"0.weight": torch.zeros(32, 64)}, {}, r"0\.weight are missing or duplicated"),
        ({"0.weight_values": torch.zeros(32, 30)}, {}, r"0\.weight has values torch\.float32 \[32, 30\]"),
        ({"0.weight_values": torch.zeros(1024)}, {}, r"values torch\.float32 \[1024\]"),
        ({"0.weight_values": torch.zeros(32, 32, dtype=torch.int32)}, {}, r"values torch\.int32"),
        ({"0.weight_places": torch.zeros(32, 8)}, {}, r"places torch\.float32"),
        ({"0.weight_places": torch.zeros(32, 8, dtype=torch.uint8)}, {}, "are equal or descending"),
        ({"0.weight_places": torch.full((32, 8), 0x11, dtype=torch.uint8)}, {}, "are equal or descending"),
    ],
)
def test_an_inconsistent_file_is_refused_in_one_line(tmp_path, state, tensors, header, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode(state, {"0.weight"}))
    rewritten(path, tensors, **header)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors:? .*{words}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_or_of_another_kind_is_refused(tmp_path, state):
    path = tmp_path / "m.safetensors"
    data = encode(state, {"0.weight"})
    for length in (0, 7, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"m\.safetensors"):
            read(path)
    path.write_bytes(safetensors.torch.save(state))
    with pytest.raises(CheckpointError, match="is a file of plain weights, not a 2:4 export"):
        read(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "nothing")


@given(data=st.data())
def test_flipped_bytes_give_weights_or_one_error(tmp_path_factory, data):
    weight = two_of_four(32, 64, seed=5)
    content = bytearray(encode({"0.weight": weight}, {"0.weight"}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "m.safetensors"
    path.write_bytes(content)
    try:
        weights, packed = read(path)
    except CheckpointError:
        return
    assert all(weights[name].shape == weight.shape for name in packed)
