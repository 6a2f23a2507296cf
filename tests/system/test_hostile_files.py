"""Hostile files: every reader refuses them in one line of error, in little time and memory.

The corpus is made here from good files of every kind: truncated, with flipped bits, with false headers, with values
that are not masks.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from prunekit.cli import main
from prunekit.deployment.shrinking import load_shrunk, save_shrunk, shrink
from prunekit.deployment.sparse import load_csr, run_sparse, save_csr
from prunekit.errors import CheckpointError, MaskError
from prunekit.layers.torch_views import core_view
from prunekit.masks.foreign import torch_prune_state
from prunekit.masks.masks import Masks, load_masks
from prunekit.masks.weight_files import load_weights, save_sparse, save_weights
from prunekit.runs.checkpoints import checkpoint
from prunekit.runs.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MANY = 10**12


def network_masks() -> tuple[dict[str, torch.Tensor], Masks]:
    generator = torch.Generator().manual_seed(0)
    weights = {"conv.weight": torch.rand(6, 3, 3, 3, generator=generator) + 1, "fc.weight": torch.ones(4, 8)}
    weights["fc.bias"] = torch.ones(4)
    masks = {name: torch.rand(weights[name].shape, generator=generator) < 0.5 for name in ("conv.weight", "fc.weight")}
    return weights, Masks(masks, {"seed": 1})


def write_packed(path: Path) -> None:
    network_masks()[1].save(path)


def write_plain(path: Path) -> None:
    network_masks()[1].save(path, packed=False)


def write_floats(path: Path) -> None:
    save_weights(
        path, {name.replace("weight", "mask"): mask.float() for name, mask in network_masks()[1].tensors.items()}
    )


def write_torch_prune(path: Path) -> None:
    weights, masks = network_masks()
    save_weights(path, torch_prune_state(masks.tensors, weights))


def write_torch(path: Path) -> None:
    weights, masks = network_masks()
    torch.save(torch_prune_state(masks.tensors, weights), path)


def write_bitmask(path: Path) -> None:
    mask = network_masks()[1].tensors["fc.weight"]
    counts = mask.sum(-1)
    packed = torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))
    tensors = {"fc.bitmask": packed, "fc.shape": torch.tensor(mask.shape), "fc.compressed": torch.ones(int(mask.sum()))}
    save_weights(path, {**tensors, "fc.row_offsets": counts.cumsum(0) - counts})


def write_pairs(path: Path) -> None:
    packed = torch.full((4, 2), 0b10010110, dtype=torch.uint8)
    save_weights(path, {"fc.bitmask": packed, "fc.shape": torch.tensor([[4], [16]]), "fc.compressed": torch.ones(4, 8)})


def write_sparse(path: Path) -> None:
    save_sparse(path, *network_masks())


def write_checkpoint(path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = {"model": network.state_dict(), "masks": {"fc": torch.ones(2, 3, dtype=torch.bool)}}
    folder = path.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, Checkpoint(1, 2, tensors, optimizer.state_dict(), {"losses": [1.0]})).replace(path)


class Small(nn.Module):
    """The network of ``network_masks``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).flatten(1)[:, :8])


def write_csr(path: Path) -> None:
    network, (weights, masks) = Small(), network_masks()
    network.load_state_dict(weights)
    # Compressed rows make a small weight smaller only if it is nearly empty.
    sparse = Masks({name: mask & (torch.rand(mask.shape) < 0.2) for name, mask in masks.tensors.items()})
    save_csr(path, network, sparse, run_sparse(network, sparse, torch.ones(1, 3, 4, 4), form="csr")[1])


def read_csr(path: Path) -> nn.Module:
    return load_csr(path, Small(), torch.ones(1, 3, 4, 4))


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        network[0].weight[1] = 0
    return network.eval()


def write_shrunk(path: Path) -> None:
    save_shrunk(path, shrink(small_network(), torch.ones(1, 2, 6, 6), view_of=core_view).network, view_of=core_view)


def read_shrunk(path: Path) -> nn.Module:
    return load_shrunk(small_network(), path, view_of=core_view)


Reader = Callable[[Path], Any]
KINDS: dict[str, tuple[Callable[[Path], None], Reader]] = {
    "packed": (write_packed, load_masks),
    "plain": (write_plain, load_masks),
    "floats": (write_floats, load_masks),
    "torch-prune": (write_torch_prune, load_masks),
    "torch": (write_torch, load_masks),
    "torch weights": (write_torch, load_weights),
    "bitmask": (write_bitmask, load_masks),
    "pairs": (write_pairs, load_masks),
    "sparse": (write_sparse, load_weights),
    "masks of sparse": (write_sparse, load_masks),
    "checkpoint": (write_checkpoint, load_checkpoint),
    "csr": (write_csr, read_csr),
    "shrunk": (write_shrunk, read_shrunk),
}


def good(kind: str, folder: Path) -> bytes:
    path = folder / "good"
    KINDS[kind][0](path)
    KINDS[kind][1](path)
    return path.read_bytes()


def damaged(data: bytes, random: np.random.Generator) -> Iterator[bytes]:
    """Yield truncated files, flipped bits, missing and changed ranges."""
    for cut in random.integers(0, len(data), 12):
        yield data[:cut]
    start = min(len(data), 1500)  # the header is the most sensitive part
    for at in [*range(9), *random.integers(0, start, 30), *random.integers(0, len(data), 12)]:
        mutant = bytearray(data)
        mutant[at] ^= 1 << int(random.integers(8))
        yield bytes(mutant)
    for first, last in np.sort(random.integers(0, len(data), (8, 2))):
        yield data[:first] + data[last:]
        yield data[:first] + random.bytes(int(last - first)) + data[last:]


def lying(data: bytes) -> Iterator[bytes]:
    """Yield safetensors files with false headers; all of them must be refused."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    for change in (
        {"data_offsets": [0, MANY]},
        {"data_offsets": [-8, 8]},
        {"data_offsets": [len(body), 0]},
        {"data_offsets": [2**64, 2**64]},
        {"shape": [MANY]},
        {"shape": [MANY, MANY]},
        {"shape": [-1]},
        {"dtype": "F65"},
        {"dtype": None},
    ):
        for name in names:
            yield joined(header | {name: {**header[name], **change}}, body)
    first, *others = names
    for other in others:
        yield joined(header | {other: header[first]}, body)  # two tensors in one place
    for claimed in (2**25, MANY, 2**64 - 1, length + len(body) + 1):
        yield struct.pack("<Q", claimed) + data[8:]
    yield joined(header, body + b"\0" * 8)
    yield joined(header, body[:-1])
    yield struct.pack("<Q", 10) + b"[[[[[[[[[["
    yield b""


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refusal(data: bytes, read: Reader, path: Path) -> str | None:
    """Return a reader's error on a file; ``None`` if it reads the file."""
    path.write_bytes(data)
    said = None
    try:
        read(path)
    except (MaskError, CheckpointError) as error:
        said = str(error)
    assert path.read_bytes() == data
    assert said is None or (str(path) in said and "\n" not in said)
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    said = [
        refusal(mutant, KINDS[kind][1], tmp_path / "m")
        for mutant in damaged(good(kind, tmp_path), np.random.default_rng(len(kind)))
    ]
    assert len(said) == 79  # 12 kinds: 948 files
    assert sum(message is not None for message in said) > len(said) / 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("torch")] + ["torch-prune"])
def test_a_header_that_lies_is_refused(kind: str, tmp_path: Path) -> None:
    for mutant in lying(good(kind, tmp_path)):
        assert refusal(mutant, KINDS[kind][1], tmp_path / "m") is not None


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc.weight_mask": torch.tensor([0.0, float("nan")])},
        {"fc.weight_mask": torch.tensor([0.0, float("inf")])},
        {"fc.weight_mask": torch.tensor([0, 2], dtype=torch.uint8).view(torch.bool)},
        {"fc.weight_mask": torch.tensor([0, 255], dtype=torch.uint8).view(torch.bool)},
        {"fc.weight_mask": torch.tensor([1.0, -1.0])},
        {"fc.weight_mask": torch.ones(2, dtype=torch.complex64)},
        {"fc.weight_mask": torch.ones(2), "fc.mask": torch.ones(2)},
        {"fc.weight_mask": torch.ones(2), "module._orig_mod.fc._mask": torch.ones(2)},
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_values_that_are_not_masks_are_refused_by_key(
    form: str, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "m"
    if form == "torch":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    said = refusal(path.read_bytes(), load_masks, path)
    assert said is not None
    assert all(key in said for key in tensors)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "", "a" * 5000, "..", "con.weight", "\u202e"]
)
def test_names_are_never_paths(name: str, tmp_path: Path) -> None:
    Masks({name: torch.ones(2, 2, dtype=torch.bool)}).save(tmp_path / "m")
    assert load_masks(tmp_path / "m").tensors.keys() == {name}
    with pytest.raises(MaskError, match="no parameter"):
        load_masks(tmp_path / "m").apply({"fc.weight": torch.ones(2, 2)})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("checkpoint", {"stage": "1"}),
        ("checkpoint", {"facts": []}),
        ("checkpoint", {"groups": 3}),
        ("checkpoint", {"groups": []}),
        ("checkpoint", {"optimizer": []}),
        ("checkpoint", {"optimizer": {"numbers": {"x/y": 1}, "groups": []}}),
        ("checkpoint", {"format": 99}),
        ("sparse", {"kind": 1}),
        ("sparse", {"kind": "masks"}),
        ("sparse", {"layers": {}}),
        ("sparse", {"layers": {"fc.weight": {"shape": [MANY, MANY], "kept": 3}}}),
        ("sparse", {"format": "1"}),
        ("csr", {"format": 2}),
        ("csr", {"format": True}),
        ("csr", {"matrices": {"conv.weight": MANY, "fc.weight": 8}}),
        ("csr", {"matrices": {"conv.weight": 0, "fc.weight": 8}}),
        ("csr", {"matrices": []}),
        ("csr", {"matrices": {"fc.weight": 8}}),
        ("csr", {"tied": {"fc.bias": "conv.weight"}}),
        ("csr", {"tied": {"fc.bias": []}}),
        ("csr", {"forms": {"fc": {}}}),
        ("csr", {"forms": {"fc": {"0": "vectors"}}}),
        ("csr", {"forms": {"fc": {"9" * 5000: "vectors"}}}),
        ("csr", {"forms": {"fc": {"1": "taps"}}}),
        ("csr", {"forms": {"fc": {"1": 1}}}),
        ("csr", {"forms": {"relu": {"1": "vectors"}}}),
    ],
)
def test_our_headers_with_nonsense_values_are_refused(
    kind: str, header: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = good(kind, tmp_path)
    monkeypatch.setattr(checkpoint, "_digest", lambda *_: None)  # an attacker can write a valid digest, too
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    ours = json.loads(outer["__metadata__"]["prunekit"])
    ours.pop("digest", None)
    for text in (json.dumps(ours | header), json.dumps([ours]), "[" * 10_000, "9" * 5000):
        outer["__metadata__"]["prunekit"] = text
        assert refusal(joined(outer, data[8 + length :]), KINDS[kind][1], tmp_path / "m") is not None


def heavy(folder: Path) -> Iterator[Path]:
    """Write files that are small, or valid, but could take much memory."""
    limit = 15 * 2**20

    def write(name: str, header: str) -> Path:
        path = folder / name
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        return path

    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    yield write("names", "{" + ",".join(f'"{number}":{entry}' for number in range(limit // 60)) + "}")
    yield write(
        "shape", '{"a_mask":{"dtype":"U8","shape":[' + ",".join("0" * (limit // 2)) + '],"data_offsets":[0,0]}}'
    )
    for name, text in (("lists", "[" + "[]," * (limit // 3) + "[]]"), ("dicts", "[" + "{}," * (limit // 3) + "{}]")):
        yield write(name, json.dumps({"__metadata__": {"prunekit": text}}))
    yield write("numbers", json.dumps({"__metadata__": {"prunekit": "[" + "0.1," * (limit // 4) + "1]"}}))
    shape = ",".join("0" * (limit // 12))
    yield write(
        "lawful", f'{{"a_mask":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}}}' + " " * (limit * 5 // 6)
    )
    nested = '{"layers":{},"info":' + '{"a":' * 100_000 + "1" + "}" * 100_001
    yield write("nested", json.dumps({"__metadata__": {"prunekit": nested}}))
    torch.save({"fc.weight_mask": torch.ones(1).expand(10**6, 10**6)}, folder / "expanded.pt")
    yield folder / "expanded.pt"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the peak of one program")
def test_no_file_takes_more_than_400_mib(tmp_path: Path) -> None:
    paths = [str(path) for path in heavy(tmp_path)]
    code = """
import sys
from pathlib import Path
import torch
from prunekit.runs.checkpoints.checkpoint import load_checkpoint
from prunekit.errors import PrunekitError
from prunekit.masks.masks import Masks, load_masks
from prunekit.deployment.shrinking import load_shrunk, save_shrunk, shrink
from prunekit.masks.weight_files import load_weights
Masks({"a": torch.ones(2, 2, dtype=torch.bool)}).save(sys.argv[1] + "-warm")
load_masks(sys.argv[1] + "-warm")
def peak():
    # Not ru_maxrss: a child starts with its parent's, which has run other tests.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
before = peak()
for path in sys.argv[1:]:
    for read in (load_masks, load_weights, load_checkpoint):
        try:
            read(Path(path))
        except PrunekitError as error:
            assert path in str(error), error
        print(path, read.__name__, round(peak() - before), flush=True)
assert peak() - before < 400, peak() - before  # 361 MiB are taken by a quarter of a million valid tensors
"""
    done = subprocess.run(  # noqa: S603 - the code above
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_broken_input_never_changes_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, masks, target = (str(tmp_path / name) for name in ("model", "masks", "target"))
    weights, _ = network_masks()
    save_weights(model, weights)
    Path(target).write_text("precious")
    for kind, (write, _) in KINDS.items():
        if kind in {"checkpoint", "csr"}:
            continue
        write(Path(masks))
        Path(masks).write_bytes(Path(masks).read_bytes()[:-9])
        for arguments in (
            ["masks", "convert", masks],
            ["masks", "merge", masks, masks],
            ["masks", "apply", model, masks],
            ["masks", "apply", masks, masks, "--sparse"],
            ["masks", "convert", masks, "--from-zeros"],
        ):
            assert main([*arguments, "-o", target]) == 2
            assert masks in capsys.readouterr().err
            assert Path(target).read_text() == "precious"
