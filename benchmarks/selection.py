"""Cost of selection from 25 M weights: the best tenth over all layers, 2:4, and blocks of 4 x 4.

The floor is one pass that reads the weights, block by block, and writes masks: no way of selecting can be faster. Peers
are ``torch.nn.utils.prune``, the plain way (``topk`` over all groups or blocks) and torchao's
``WeightNormSparsifier``, where torchao is installed (``pip install -e '.[bench]'``); it has no ranking over layers.
torch-pruning ranks coupled channels only, after tracing the network: no selection here does the same work.
The masks of 2:4 and of blocks are compared with those of the plain way, so the work is the same.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import Row, interleaved
from torch import Tensor, nn
from torch.nn.utils import prune

import prunekit
from prunekit.masks.selection import Blocks, NofM, Quota, keep_best, keep_best_global

LAYERS, SHAPE = 5, (5000, 1000)
DENSITY = 0.1
WEIGHTS = LAYERS * SHAPE[0] * SHAPE[1]
KEPT = round(DENSITY * WEIGHTS)
BLOCK = 1 << 18
FLOOR, PRUNE, MEMORY, PLAIN = 2.5, 1 / 30, 0.6, 0.5
SELECT = 0.2  # with scores, their checks and means


def make_weights() -> dict[str, Tensor]:
    """Return five layers of 5 M weights."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer{number}": torch.randn(1, *SHAPE, generator=generator) for number in range(LAYERS)}


def read_and_write(weights: dict[str, Tensor], threshold: float) -> list[Tensor]:
    """Compare each weight with a threshold that is known."""
    scratch, masks = torch.empty(BLOCK), []
    for weight in weights.values():
        mask = torch.empty(weight.numel(), dtype=torch.bool)
        for part, into in zip(torch.split(weight.view(-1), BLOCK), torch.split(mask, BLOCK), strict=True):
            torch.gt(torch.abs(part, out=scratch[: part.numel()]), threshold, out=into)
        masks.append(mask)
    return masks


def global_unstructured(model: nn.Module) -> None:
    """Prune with torch's own tool, and undo it."""
    layers = [(module, "weight") for module in model.children()]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=WEIGHTS - KEPT)
    for module, name in layers:
        module.weight.data = module.weight_orig.data
        prune.remove(module, name)  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped


def plain_2_of_4(scores: Tensor) -> Tensor:
    """Take the two largest of each group."""
    groups = scores.reshape(-1, 4)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(2).indices, True).reshape(scores.shape)


def plain_blocks(scores: Tensor) -> Tensor:
    """Take the largest sums of 4 x 4."""
    _, rows, columns = scores.shape
    sums = scores.double().reshape(rows // 4, 4, columns // 4, 4).sum((1, 3)).reshape(-1)
    mask = torch.zeros_like(sums, dtype=torch.bool).scatter_(0, sums.topk(sums.numel() // 2).indices, True)
    return mask.reshape(rows // 4, 1, columns // 4, 1).expand(-1, 4, -1, 4).reshape(scores.shape)


def sparsifier(block: tuple[int, int], zeros: int, level: float) -> Callable[[], object]:
    """Return torchao's work on one layer: norms, and masks of groups or blocks."""
    from torchao.prototype.sparsity import WeightNormSparsifier  # type: ignore[import-untyped,import-not-found,unused-ignore]  # an extra without types

    tool = WeightNormSparsifier(sparsity_level=level, sparse_block_shape=block, zeros_per_block=zeros)
    model = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0]))
    tool.prepare(model, [{"tensor_fqn": "0.weight"}])
    step: Callable[[], object] = tool.step
    return step


@torch.no_grad()
def rows() -> Iterator[Row]:
    """Measure in turns."""
    weights = make_weights()
    scores = {name: weight.abs() for name, weight in weights.items()}
    layers = [nn.Linear(*SHAPE[::-1]) for _ in weights]
    for layer, weight in zip(layers, weights.values(), strict=True):
        layer.weight.copy_(weight[0])
    model = nn.Sequential(*layers)
    threshold = float(torch.cat([score.view(-1) for score in scores.values()]).kthvalue(WEIGHTS - KEPT).values)
    ours = keep_best_global(scores, KEPT)
    known = read_and_write(weights, threshold)
    assert all(torch.equal(mask.view(-1), other) for mask, other in zip(ours.values(), known, strict=True))
    what, peer = "best tenth of 25 M", "prune.global_unstructured"
    calls: dict[str, Callable[[], object]]
    calls = {"ours": lambda: keep_best_global(scores, KEPT), "floor": lambda: read_and_write(weights, threshold)}
    times = interleaved(calls, repeats=21)
    yield Row(what, times["ours"], "reading and writing", times["floor"], FLOOR)
    calls = {
        "ours": calls["ours"],
        "select": lambda: prunekit.select(model, "magnitude", density=DENSITY, scope="global"),
        "theirs": lambda: global_unstructured(model),
    }
    times = interleaved(calls, repeats=3)
    yield Row(what, times["ours"], peer, times["theirs"], PRUNE)
    yield Row(f"{what}, prunekit.select", times["select"], peer, times["theirs"], SELECT)
    before, after = _memory()
    yield Row(f"{what}, memory", after - before, "weights", 4 * WEIGHTS / 2**20, MEMORY, unit="MiB")
    one = scores["layer0"]
    for name, pattern, plain, block, zeros in (
        ("2:4 of 5 M", NofM(2, 4), plain_2_of_4, (1, 4), 2),
        ("blocks 4x4 of 5 M", Blocks(4, 4), plain_blocks, (4, 4), 16),
    ):
        quota = Quota(0.5, SHAPE[1:], pattern=pattern)
        assert torch.equal(keep_best(one, quota), plain(one))
        calls = {
            "ours": lambda: keep_best(one, quota),  # noqa: B023 - called in this turn of the loop
            "topk": lambda: plain(one),  # noqa: B023 - likewise
        }
        if importlib.util.find_spec("torchao"):
            calls["torchao"] = sparsifier(block, zeros, 0.5 if zeros == 16 else 1.0)  # noqa: PLR2004 - the whole block
        times = interleaved(calls, repeats=5)
        for other in (name for name in times if name != "ours"):
            yield Row(name, times["ours"], other, times[other], PLAIN)


def _memory() -> tuple[float, float]:
    """Return the peak in MiB of a process before and after the ranking."""
    command = [sys.executable, __file__, str(torch.get_num_threads())]
    before, after = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(before), float(after)


def _peak() -> float:
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


def main(threads: str) -> None:
    """Print the peak memory before and after the ranking, in MiB."""
    torch.set_num_threads(int(threads))
    scores = {name: weight.abs_() for name, weight in make_weights().items()}
    keep_best_global({"little": scores["layer0"][:, :1]}, 1)  # whatever is loaded late is not the ranking's
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    masks = keep_best_global(scores, KEPT)
    print(before, _peak())
    assert sum(int(mask.sum()) for mask in masks.values()) == KEPT


if __name__ == "__main__":
    main(*sys.argv[1:])
