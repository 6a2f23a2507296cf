import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from prunekit.errors import MaskError
from prunekit.masks.foreign import torch_prune_state
from prunekit.masks.masks import Masks, load_masks


def pruned_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 3), nn.Conv2d(2, 3, 3))
    prune.random_unstructured(network[0], "weight", 0.5)
    prune.random_unstructured(network[0], "bias", 0.5)
    prune.random_unstructured(network[1], "weight_ih_l0", 0.5)
    prune.ln_structured(network[2], "weight", 0.5, n=2, dim=0)
    return network


def bitmask(weight: torch.Tensor, module: str = "fc", *, pairs: bool = False) -> dict[str, torch.Tensor]:
    """Store one weight as compressed-tensors does."""
    kept = weight != 0
    packed = torch.from_numpy(np.packbits(kept.numpy(), axis=-1, bitorder="little"))
    tensors = {f"{module}.bitmask": packed, f"{module}.shape": torch.tensor(weight.shape)}
    if pairs:
        tensors[f"{module}.shape"] = tensors[f"{module}.shape"].reshape(-1, 1)
        return tensors | {f"{module}.compressed": weight[kept].reshape(len(weight), -1)}
    counts = kept.sum(-1)
    return tensors | {f"{module}.compressed": weight[kept], f"{module}.row_offsets": counts.cumsum(0) - counts}


def sparse_weight(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.4)


def paired_weight() -> torch.Tensor:
    return sparse_weight(4, 16).abs().add(1) * torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(4)


def refusal(path: Path) -> str:
    with pytest.raises(MaskError) as error:
        load_masks(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("how", ["safetensors", "torch", "trainer"])
def test_a_network_goes_from_torch_prune_to_prunekit_and_back_bit_by_bit(how: str, tmp_path: Path) -> None:
    network, path = pruned_network(), tmp_path / "pruned"
    state = network.state_dict()
    if how == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if how == "torch" else {"epoch": 3, "state_dict": state}, path)
    masks = load_masks(path)
    assert sorted(masks.tensors) == ["0.bias", "0.weight", "1.weight_ih_l0", "2.weight"]
    masks.save(tmp_path / "packed")
    back = torch_prune_state(load_masks(tmp_path / "packed").tensors, state)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].view(torch.int32), tensor.view(torch.int32))


def test_a_model_pruned_with_torch_loads_what_prunekit_writes() -> None:
    plain = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    masks = Masks({"0.weight": torch.rand(4, 6) < 0.5, "module.1.bias": torch.rand(2) < 0.5})
    state = torch_prune_state(masks.tensors, plain.state_dict())
    other = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    prune.identity(other[0], "weight")
    prune.identity(other[1], "bias")
    other.load_state_dict(state)
    other(torch.zeros(1, 6))  # torch makes the masked weight in the forward pass
    assert torch.equal(other[0].weight, plain[0].weight * masks.tensors["0.weight"])
    assert torch.equal(other[1].bias, plain[1].bias * masks.tensors["module.1.bias"])


def test_masks_that_fit_no_weight_are_all_listed() -> None:
    masks = {"a.weight": torch.ones(2, 2, dtype=torch.bool), "b.weight": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(MaskError, match=r"'a.weight' has a mask of \[2, 2\] for a weight of \[2\]; no .*'b.weight'"):
        torch_prune_state(masks, {"a.weight": torch.ones(2)})


@pytest.mark.parametrize("shape", [(5, 13), (4, 8), (7,), (2, 3, 3, 3), (0, 4), (3, 0)])
def test_bitmasks_are_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    weight = sparse_weight(*shape)
    if len(shape) == 1:
        tensors = bitmask(weight)
        tensors["fc.row_offsets"] = torch.tensor(0)
    else:
        tensors = bitmask(weight)
    safetensors.torch.save_file({**tensors, "fc.bias": torch.zeros(2), "own.bitmask": torch.ones(3)}, tmp_path / "m")
    assert load_masks(tmp_path / "m") == Masks({"fc.weight": weight != 0})


def test_bitmasks_of_pairs_are_read(tmp_path: Path) -> None:
    weight = paired_weight()
    safetensors.torch.save_file(bitmask(weight, "module.fc", pairs=True), tmp_path / "m")
    assert load_masks(tmp_path / "m") == Masks({"fc.weight": weight != 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.shape": None}, "fc.bitmask comes without fc.shape"),
        ({"fc.compressed": None}, "fc.bitmask comes without fc.compressed"),
        ({"fc.shape": torch.tensor([4, 9])}, "fc.bitmask is torch.uint8 [4, 1], expected torch.uint8 [4, 2]"),
        ({"fc.shape": torch.tensor([10**6, 10**6])}, "expected torch.uint8 [1000000, 125000]"),
        ({"fc.shape": torch.tensor([-4, 8])}, "fc.shape is [-4, 8]"),
        ({"fc.shape": torch.tensor([4.0, 8.0])}, "fc.shape is torch.float32 [2], expected the sizes"),
        ({"fc.shape": torch.zeros(0, dtype=torch.int64)}, "fc.shape is torch.int64 [0], expected the sizes"),
        ({"fc.shape": torch.ones(99, dtype=torch.int64)}, "fc.shape is torch.int64 [99]"),
        ({"fc.bitmask": torch.ones(4, 1)}, "fc.bitmask is torch.float32"),
        ({"fc.bitmask": torch.full((4, 1), 255, dtype=torch.uint8)}, "fc.bitmask keeps 32 weights, but fc.compressed"),
        ({"fc.row_offsets": torch.tensor([0, 1, 2, 3])}, "fc.row_offsets does not match the counts of fc.bitmask"),
        ({"fc.row_offsets": torch.zeros(4)}, "fc.row_offsets does not match"),
        ({"module.fc.weight_mask": torch.ones(4, 8)}, "fc.bitmask and module.fc.weight_mask are both masks"),
    ],
)
def test_damaged_bitmasks_are_refused_by_file_and_key(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {**bitmask(sparse_weight(4, 8)), **change}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, tmp_path / "m")
    assert message in refusal(tmp_path / "m")


@pytest.mark.thorough
def test_files_of_the_real_compressed_tensors_are_read_bit_by_bit(tmp_path: Path) -> None:
    code = """
import sys, torch, safetensors.torch
from compressed_tensors.compressors.sparse_compressors import BitmaskCompressor, Sparse24BitMaskCompressor
from compressed_tensors.config import BitmaskConfig, Sparse24BitMaskConfig
weights = safetensors.torch.load_file(sys.argv[1])
plain = BitmaskCompressor(config=BitmaskConfig()).compress(weights)
safetensors.torch.save_file(plain, sys.argv[2])
pairs = {name: weight for name, weight in weights.items() if "pairs" in name}
pairs = Sparse24BitMaskCompressor(config=Sparse24BitMaskConfig()).compress(pairs)
safetensors.torch.save_file(pairs, sys.argv[3])
"""
    weights = {
        "a.fc.weight": sparse_weight(5, 13).bfloat16(),
        "conv.weight": sparse_weight(2, 3, 3, 3).double(),
        "pairs.weight": paired_weight(),
        "a.fc.bias": torch.ones(5),
    }
    safetensors.torch.save_file(weights, tmp_path / "dense")
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("dense", "plain", "pairs"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the code above
    if "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr:
        pytest.skip("compressed-tensors 0.9, which still writes these formats, is not installed")
    assert done.returncode == 0, done.stderr
    expected = {name: weight != 0 for name, weight in weights.items() if name != "a.fc.bias"}
    assert load_masks(tmp_path / "plain") == Masks(expected)
    assert load_masks(tmp_path / "pairs") == Masks({"pairs.weight": expected["pairs.weight"]})


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def rezipped(source: Path, target: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for member in old.infolist():
            name = member.filename.rpartition("/")[2]
            new.writestr(member.filename, change.get(name, old.read(member)))


def test_no_pickle_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "m.pt", tmp_path / "mark"
    torch.save({"fc.weight_mask": torch.ones(2), "bomb": Bomb(mark)}, path)
    assert "its pickle names posix.mkdir" in refusal(path)
    path.write_bytes(b"\x80\x02" + f"cposix\nmkdir\n(V{mark}\ntR.".encode())  # what unpickling would run
    assert "a pickle of an old torch.save, which is never read" in refusal(path)
    torch.save({"fc.weight_mask": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "a pickle of an old torch.save" in refusal(path)
    torch.save(nn.Linear(2, 2), path)
    assert "save model.state_dict() instead" in refusal(path)
    assert not mark.exists()


def test_sizes_that_a_torch_file_claims_take_no_memory(tmp_path: Path) -> None:
    good, path = tmp_path / "good.pt", tmp_path / "m.pt"
    torch.save({"fc.weight_mask": torch.ones(2, 3)}, good)
    torch.save({"fc.weight_mask": torch.ones(1).expand(10**6, 10**6)}, path)
    assert "fc.weight_mask claims 1000000000000 elements" in refusal(path)
    torch.save([torch.ones(2)], path)
    assert "holds a list, expected a state dict" in refusal(path)
    torch.save({"fc.weight_mask": torch.ones(2, 2).to_sparse()}, path)
    assert "its pickle names torch._utils._rebuild_sparse_tensor" in refusal(path)
    rezipped(good, path, {}, zipfile.ZIP_DEFLATED)
    assert "has compressed members" in refusal(path)
    rezipped(good, path, {"data.pkl": b"\x80\x02" + b"]" * 2**21 + b"."})
    assert "expected one data.pkl of at most" in refusal(path)
    rezipped(good, path, {"data.pkl": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x40\x85R."})
    assert "its pickle names builtins.bytearray" in refusal(path)


def test_torch_files_of_every_dtype_are_read(tmp_path: Path) -> None:
    mask = torch.rand(3, 5) < 0.5
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64):
        torch.save({"fc.weight_mask": mask.to(dtype), "fc.weight": nn.Parameter(torch.ones(3, 5))}, tmp_path / "m.pth")
        assert load_masks(tmp_path / "m.pth") == Masks({"fc.weight": mask})
