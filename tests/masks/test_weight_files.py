import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from prunekit.errors import CheckpointError, MaskError
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.matching import match
from prunekit.masks.weight_files import load_weights, save_sparse

INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ODD = [-0.0, float("nan"), float("inf"), -float("inf"), 1e-40, 2.0]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.view(INTEGER[first.element_size()]), second.view(INTEGER[second.element_size()]))
    )


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e5m2]),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_is_saved_is_loaded_to_the_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([], dtype=dtype).element_size()
    bits = torch.randint(0, 256, (math.prod(shape) * size,), generator=generator, dtype=torch.uint8)
    weight = bits.view(dtype).reshape(shape)  # any bits at all: NaNs with payload, -0.0, infinities, subnormal numbers
    mask = torch.rand(shape, generator=generator) < density
    others = {"bias": torch.tensor(ODD), "count": torch.tensor(3), "empty": torch.zeros(0, 2)}
    path = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    save_sparse(path, {"f.weight": weight, **others}, Masks({"f.weight": mask}, {"seed": seed}))
    loaded = load_weights(path)
    assert loaded.keys() == {"f.weight", *others}
    assert same_bits(loaded["f.weight"][mask], weight[mask])
    assert same_bits(loaded["f.weight"][~mask], torch.zeros_like(weight[~mask]))
    assert all(same_bits(loaded[name], tensor) for name, tensor in others.items())
    assert load_masks(path) == Masks({"f.weight": mask})
    assert load_masks(path).info == {"seed": seed}


def test_a_network_comes_back_whole_whatever_wraps_it(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4), nn.Linear(4, 4))
    network[3].weight = nn.Parameter(network[0].weight.detach()[:4, 0].reshape(4, 9)[:, :4])
    network[3].bias = network[2].bias  # tied
    masks = Masks({"module.0.weight": torch.rand(8, 3, 3, 3) < 0.3, "2.weight": torch.rand(4, 8) < 0.3})
    masks.apply(network)
    network[0].to(memory_format=torch.channels_last)
    save_sparse(tmp_path / "model", network.state_dict(), masks)
    loaded = load_weights(tmp_path / "model")
    assert all(same_bits(loaded[name], tensor) for name, tensor in network.state_dict().items())
    network.load_state_dict(loaded)


def test_a_tied_weight_is_sparse_under_each_of_its_names(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    network[1].weight = network[0].weight
    masks = Masks({"0.weight": torch.rand(64, 64) < 0.1})
    path = tmp_path / "sparse.safetensors"
    save_sparse(path, network.state_dict(), masks)
    assert path.stat().st_size < 4 * 64 * 64 * 1.6
    assert match(load_masks(path).tensors, network).keys() == {"0.weight"}
    again = copy.deepcopy(network)
    again.load_state_dict(load_weights(path))
    assert torch.equal(again[1].weight != 0, masks.tensors["0.weight"])
    assert torch.equal(again[2].weight, network[2].weight)


def test_the_layout_is_the_documented_one_and_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    weight, mask = torch.rand(5, 11), torch.rand(5, 11) < 0.5
    state = {"f.weight": weight, "f.bias": torch.ones(5)}
    save_sparse(tmp_path / "a", state, Masks({"f.weight": mask}))
    save_sparse(tmp_path / "b", dict(reversed(state.items())), Masks({"f.weight": mask}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="np") as file:
        header = json.loads(file.metadata()["prunekit"])
        assert header["kind"] == "sparse"
        assert set(file.keys()) == {"f.bias", "f.weight_mask", "f.weight_values"}
        bits = np.unpackbits(file.get_tensor("f.weight_mask"), axis=-1, bitorder="little")[:, :11]
        dense = np.zeros((5, 11), np.float32)
        dense[bits.astype(bool)] = file.get_tensor("f.weight_values")
    np.testing.assert_array_equal(dense, weight * mask)


# The weights of the paper's network, 17,828,544 of them; 5a and 5b have filters of their own at every position.
PAPER = {
    "conv1a": (64, 3, 3, 3),
    "conv1b": (64, 64, 3, 3),
    "conv2a": (96, 64, 3, 3),
    "conv2b": (96, 96, 3, 3),
    "conv3a": (192, 96, 3, 3),
    "conv3b": (192, 192, 3, 3),
    "conv4a": (256, 192, 3, 3),
    "conv4b": (256, 256, 3, 3),
    "local5a": (5, 4, 256, 256, 3, 3),
    "local5b": (3, 2, 256, 256, 3, 3),
    "f": (512, 1536),
}


def test_the_papers_smallest_network_takes_less_than_a_sixth_of_the_dense_file(tmp_path: Path) -> None:
    state = {f"{layer}.weight": torch.rand(shape) + 0.5 for layer, shape in PAPER.items()}
    total = sum(weight.numel() for weight in state.values())
    assert total == 17_828_544
    densities = {"f.weight": 1 / 256, "local5b.weight": 1 / 128, "local5a.weight": 1 / 32}
    masks = Masks({name: torch.rand(state[name].shape) < density for name, density in densities.items()})
    for name, mask in masks.tensors.items():
        state[name] *= mask
    assert round(sum(int(weight.count_nonzero()) for weight in state.values()) / total, 2) == 0.12
    state |= {f"{layer}.bias": torch.rand(shape[-4] if len(shape) > 2 else shape[0]) for layer, shape in PAPER.items()}
    safetensors.torch.save_file(state, tmp_path / "dense")
    save_sparse(tmp_path / "sparse", state, masks)
    assert (tmp_path / "sparse").stat().st_size <= 0.16 * (tmp_path / "dense").stat().st_size
    loaded = load_weights(tmp_path / "sparse")
    assert all(same_bits(loaded[name], tensor) for name, tensor in state.items())


def test_plain_safetensors_and_torch_files_are_weights_too(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    safetensors.torch.save_file(state, tmp_path / "plain")
    torch.save(state, tmp_path / "model.pt")
    for name in ("plain", "model.pt"):
        loaded = load_weights(tmp_path / name)
        assert all(same_bits(loaded[key], tensor) for key, tensor in state.items())


def test_a_mask_that_fits_no_weight_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    mask, state = torch.ones(2, 2, dtype=torch.bool), {"f.weight": torch.ones(2, 2), "f.weight_values": torch.ones(1)}
    with pytest.raises(MaskError, match=r"no parameter 'g.weight'"):
        save_sparse(tmp_path / "m", state, Masks({"g.weight": mask}))
    with pytest.raises(CheckpointError, match=r"the format needs the names f.weight_values"):
        save_sparse(tmp_path / "m", state, Masks({"f.weight": mask}))
    assert not list(tmp_path.iterdir())


def test_a_mask_file_is_no_weights(tmp_path: Path) -> None:
    Masks({"f.weight": torch.ones(2, 2, dtype=torch.bool)}).save(tmp_path / "m")
    with pytest.raises(CheckpointError, match="m is a mask file, not a file of plain weights"):
        load_weights(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f.weight_values": None}, "f.weight_values is missing"),
        ({"f.weight_values": torch.ones(7)}, r"f.weight_values is torch.float32 \[7\], expected 4 kept weights"),
        ({"f.weight_values": torch.ones(2, 2)}, r"f.weight_values is torch.float32 \[2, 2\]"),
        ({"f.weight_values": torch.ones(4, dtype=torch.int32)}, "f.weight_values is torch.int32"),
        ({"f.weight_mask": None}, "do not match: f.weight_mask"),
        ({"f.weight_mask": torch.full((2, 1), 255, dtype=torch.uint8)}, "keeps 6 weights, but the header has 4"),
        ({"f.weight": torch.ones(2, 3)}, "has both a sparse and a dense f.weight"),
    ],
)
def test_damaged_sparse_checkpoints_are_refused_by_file_and_key(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    mask = torch.tensor([[True, False, True], [True, True, False]])
    save_sparse(path, {"f.weight": torch.rand(2, 3), "f.bias": torch.ones(2)}, Masks({"f.weight": mask}))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {**safetensors.torch.load_file(path), **change}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, metadata)
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(path)
    assert str(path) in str(error.value)
