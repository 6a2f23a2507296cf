import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from prunekit.errors import MaskError
from prunekit.masks import files as mask_files
from prunekit.masks.masks import Masks, load_masks

INFO = {"criterion": "magnitude", "schedule": "oneshot", "seed": 3, "density": {"conv4b": 0.25}}


def random_masks(seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv4b.weight": (6, 3, 3, 3), "f.weight": (5, 21), "norm.weight": (11,)}
    return Masks({name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}, INFO)


def load_bytes(data: bytes, path: Path) -> Masks:
    path.write_bytes(data)
    return load_masks(path)


def own_file(header: Any, arrays: dict[str, np.ndarray[Any, Any]] | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return safetensors.numpy.save(arrays or {}, {"prunekit": text})


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(deadline=None, max_examples=60)
@given(shapes=st.dictionaries(names, shapes, min_size=1, max_size=4), packed=st.booleans(), seed=st.integers(0, 99))
def test_what_is_saved_is_loaded(
    shapes: dict[str, tuple[int, ...]], packed: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}, {"seed": seed}
    )
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path, packed=packed)
    loaded = load_masks(path)
    assert loaded == masks
    assert loaded.info == masks.info


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    masks = random_masks()
    masks.save(tmp_path / "m")
    stored = safetensors.numpy.load_file(tmp_path / "m")
    assert sorted(stored) == ["conv4b.weight_mask", "f.weight_mask", "norm.weight_mask"]
    for name, mask in masks.tensors.items():
        rows = mask.reshape(1 if mask.dim() == 1 else len(mask), -1).numpy()
        np.testing.assert_array_equal(stored[f"{name}_mask"], np.packbits(rows, axis=-1, bitorder="little"))
    header = json.loads(parts((tmp_path / "m").read_bytes())[0]["__metadata__"]["prunekit"])
    assert header["format"] == 1
    assert header["info"] == INFO
    assert header["layers"]["f.weight"]["shape"] == [5, 21]
    assert header["layers"]["f.weight"]["density"] == masks.densities()["f.weight"]


def test_the_same_masks_give_the_same_bytes_in_any_order_and_layout() -> None:
    masks = random_masks()
    other = {name: mask.clone() for name, mask in reversed(masks.tensors.items())}
    other["conv4b.weight"] = other["conv4b.weight"].to(memory_format=torch.channels_last)
    info = dict(reversed(INFO.items()))
    for packed in (True, False):
        first = mask_files.encode(masks.tensors, masks.info, packed=packed)
        assert first == mask_files.encode(other, info, packed=packed)


def test_packed_masks_take_an_eighth_and_plain_ones_can_be_read_by_anyone(tmp_path: Path) -> None:
    masks = Masks({"conv.weight": torch.rand(256, 64, 3, 3) < 0.1})
    masks.save(tmp_path / "packed")
    masks.save(tmp_path / "plain", packed=False)
    assert (tmp_path / "packed").stat().st_size < 0.14 * (tmp_path / "plain").stat().st_size
    assert torch.equal(
        safetensors.torch.load_file(tmp_path / "plain")["conv.weight_mask"], masks.tensors["conv.weight"]
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("key", ["weight_mask", "mask", "_weight_mask", "_mask", "sparsity_mask"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_masks_of_others_are_read(dtype: torch.dtype, key: str, prefix: str, tmp_path: Path) -> None:
    mask = torch.rand(4, 9) < 0.5
    tensors = {
        f"{prefix}net.fc.{key}": mask.to(dtype),
        "net.fc.bias": torch.zeros(4),
        "attn_mask": torch.ones(2) * -100,
    }
    safetensors.torch.save_file(tensors, tmp_path / "m")
    assert load_masks(tmp_path / "m") == Masks({"net.fc.weight": mask})


def test_a_network_pruned_with_torch_is_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 3))
    prune.random_unstructured(network[0], "weight", 0.5)
    prune.random_unstructured(network[0], "bias", 0.5)
    prune.random_unstructured(network[1], "weight_ih_l0", 0.5)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "m")
    masks = load_masks(tmp_path / "m")
    assert sorted(masks.tensors) == ["0.bias", "0.weight", "1.weight_ih_l0"]
    assert torch.equal(masks.tensors["0.weight"], network[0].weight != 0)


def test_names_in_a_file_of_ours_are_kept_exactly(tmp_path: Path) -> None:
    odd = ["module.weight", "weight", "a.mask", "a.weight", "../../etc/passwd", ""]
    masks = Masks({name: torch.rand(2, 3) < 0.5 for name in odd})
    masks.save(tmp_path / "m")
    assert load_masks(tmp_path / "m") == masks


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight_mask": torch.tensor([0.0, 1.0, 0.5])}, "a.weight_mask has values other than 0 and 1"),
        ({"a.weight_mask": torch.tensor([0.0, float("nan")])}, "a.weight_mask has values other than 0 and 1"),
        ({"a.weight_mask": torch.tensor([0, 2], dtype=torch.uint8)}, "a.weight_mask has values other than 0 and 1"),
        (
            {"a.weight_mask": torch.tensor([0, 2], dtype=torch.uint8).view(torch.bool)},
            "a.weight_mask has values other than 0 and 1",
        ),
        (
            {"a.weight_mask": torch.ones(2), "module.a.mask": torch.ones(2)},
            "a.weight_mask and module.a.mask are both masks of 'a.weight'",
        ),
        (
            {"a.mask": torch.ones(2).to(torch.float8_e5m2)},
            "a.mask is torch.float8_e5m2, expected bool or zeros and ones",
        ),
        ({"a.weight": torch.ones(2)}, "no mask inside"),
        ({}, "no mask inside"),
    ],
)
def test_what_is_no_mask_is_refused_by_file_and_key(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(MaskError, match=message) as error:
        load_masks(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="nothing: no such file"):
        load_masks(tmp_path / "nothing")
    with pytest.raises(MaskError, match="Is a directory"):
        load_masks(tmp_path)
    with pytest.raises(MaskError, match="null byte"):
        load_masks("a\0b")
    for data in (b"", b"\0" * 7, b"\0" * 8, b"PK\3\4 a pickle in a zip", b"\xff" * 64, struct.pack("<Q", 2) + b"{}"):
        with pytest.raises(MaskError, match=r"m: "):
            load_bytes(data, tmp_path / "m")


def test_a_header_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    for length in (2**25 + 1, 2**40, 2**64 - 1):
        with pytest.raises(MaskError, match=f"claims a header of {length} bytes"):
            load_bytes(struct.pack("<Q", length) + b"{}", tmp_path / "m")


def test_a_newer_format_says_update(tmp_path: Path) -> None:
    data = own_file({"kind": "masks", "format": 2, "tool": "prunekit 9.0"})
    with pytest.raises(MaskError, match=r"is a mask file of format 2, written by 'prunekit 9.0', .*; update prunekit"):
        load_bytes(data, tmp_path / "m")


def own_header(shape: Any, **changes: Any) -> dict[str, Any]:
    layers = {"f.weight": {"shape": shape, "kept": 0, "density": 0.0}}
    known = mask_files.fingerprint({"f.weight": shape}) if isinstance(shape, list) else ""
    header = {"kind": "masks", "format": 1, "tool": "t"}
    return {**header, "info": {}, "layers": layers, "fingerprint": known, "packed": True} | changes


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[]", "not a JSON object"),
        ({}, "no kind"),
        ({"kind": 1}, "no kind"),
        ({"kind": "masks"}, "no format version"),
        ({"kind": "masks", "format": True}, "no format version"),
        ({"kind": "masks", "format": 1}, "layers or info is missing"),
        (own_header([4, 8], layers=[]), "layers or info is missing"),
        (own_header([4, 8], info=1), "layers or info is missing"),
        (own_header([4, 8], packed=1), "packed is neither"),
        (own_header("4x8"), "shape of 'f.weight'"),
        (own_header([4, -8]), "shape of 'f.weight'"),
        (own_header([4, True]), "shape of 'f.weight'"),
        (own_header([4, 8.0]), "shape of 'f.weight'"),
        (own_header([1] * 1000), "the shape or the count"),
        (own_header([4, 8], layers={"f.weight": {"shape": [4, 8]}}), "the shape or the count"),
        (own_header([4, 8], layers={"f.weight": 7}), "shape of 'f.weight'"),
        (own_header([4, 8], fingerprint="x"), "fingerprint"),
        (own_header([4, 9]), r"f.weight_mask is U8 \[4, 1\], expected U8 \[4, 2\] for a weight of \[4, 9\]"),
        (own_header([10**6, 10**6]), r"f.weight_mask is U8 \[4, 1\], expected U8 \[1000000, 125000\]"),
        (own_header([2**63, 2**63]), r"f.weight_mask is U8 \[4, 1\], expected"),
        (own_header([4, 8], packed=False), r"f.weight_mask is U8 \[4, 1\], expected BOOL \[4, 8\]"),
        (own_header([4, 8]), "keeps 32 weights, but the header has 0"),
        (own_header([4, 8], layers={}, fingerprint=mask_files.fingerprint({})), "do not match: f.weight_mask"),
    ],
)
def test_a_damaged_header_is_refused_before_memory_is_taken(header: Any, message: str, tmp_path: Path) -> None:
    data = own_file(header, {"f.weight_mask": np.full((4, 1), 255, dtype=np.uint8)})
    with pytest.raises(MaskError, match=message) as error:
        load_bytes(data, tmp_path / "m")
    assert str(tmp_path / "m") in str(error.value)


def test_empty_shapes_that_overflow_are_refused_and_huge_empty_ones_cost_nothing(tmp_path: Path) -> None:
    rows = 10**12
    data = own_file(own_header([rows, 0]), {"f.weight_mask": np.zeros((rows, 0), dtype=np.uint8)})
    assert load_bytes(data, tmp_path / "m").tensors["f.weight"].shape == (rows, 0)
    header, body = parts(own_file(own_header([0, 2**62, 2**62]), {"f.weight_mask": np.zeros((0, 1), dtype=np.uint8)}))
    header["f.weight_mask"]["shape"] = [0, 2**121]
    with pytest.raises(MaskError):
        load_bytes(joined(header, body), tmp_path / "m")


@pytest.mark.parametrize("offsets", [[0, 10**12], [-4, 0], [3, 1], [2**64, 2**64], [1, 25], "no", None])
def test_tensors_outside_the_file_are_refused(offsets: Any, tmp_path: Path) -> None:
    header, body = parts(mask_files.encode(random_masks().tensors, {}))
    header["f.weight_mask"]["data_offsets"] = offsets
    with pytest.raises(MaskError, match="not a readable safetensors file"):
        load_bytes(joined(header, body), tmp_path / "m")


@pytest.mark.parametrize("packed", [True, False])
def test_a_mutated_file_is_refused_or_gives_masks(packed: bool, tmp_path: Path) -> None:
    masks = random_masks()
    data = mask_files.encode(masks.tensors, masks.info, packed=packed)
    random = np.random.default_rng(0)
    header_end = 8 + int.from_bytes(data[:8], "little")
    mutants = [data[:cut] for cut in random.integers(0, len(data), 100)]
    for at in [*random.integers(0, header_end, 200), *random.integers(header_end, len(data), 100), *range(8)]:
        mutant = bytearray(data)
        mutant[at] ^= 1 << int(random.integers(8))
        mutants.append(bytes(mutant))
    for start, end in np.sort(random.integers(0, len(data), (50, 2))):
        mutants += [data[:start] + data[end:], data[:start] + random.bytes(int(end - start)) + data[end:]]
    refused = named = 0
    for mutant in mutants:
        try:
            assert isinstance(load_bytes(mutant, tmp_path / "m"), Masks)
        except MaskError as error:
            refused += 1
            named += str(tmp_path / "m") in str(error)
    assert refused == named > 0.8 * len(mutants)


def test_a_flipped_bit_of_a_mask_is_noticed(tmp_path: Path) -> None:
    masks = Masks({"f.weight": torch.rand(8, 16) < 0.5})
    data = mask_files.encode(masks.tensors, {})
    for byte in range(1, 17):
        mutant = bytearray(data)
        mutant[-byte] ^= 4
        with pytest.raises(MaskError, match=r"f.weight_mask keeps .* the file is damaged"):
            load_bytes(bytes(mutant), tmp_path / "m")


@pytest.mark.parametrize("info", [{"density": float("nan")}, {"criterion": torch.nn.Linear}, {"x": {1, 2}}])
def test_info_that_is_not_json_is_refused_and_nothing_is_written(info: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="info of masks cannot be written as JSON"):
        Masks({"a": torch.ones(2, dtype=torch.bool)}, info).save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_no_masks_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no masks to write"):
        Masks({}).save(tmp_path / "m")
