"""A linear layer of 4096 x 4096 run sparse, beside itself run dense, its dropped weights zero.

Peers that run unstructured sparsity on a CPU through another runtime (ONNX Runtime, DeepSparse) have their own kernels
and formats; here both sides are torch. At half the weights and above, where sparse kernels lose, "auto" has to see it.
"""

from collections.abc import Iterator

import torch
from measuring import Row, interleaved
from torch import nn

import prunekit
from prunekit.deployment.sparse import run_sparse

SIZE = 4096
BATCHES = (1, 32)
TARGETS = {(0.12, 1): 0.42, (0.12, 32): 0.36, (0.05, 1): 0.29, (0.05, 32): 0.18}
BELOW_CROSSOVER = (0.5, 0.9)
NEVER_SLOWER = 1.05


@torch.no_grad()
def rows() -> Iterator[Row]:
    """Measure in turns."""
    generator = torch.Generator().manual_seed(0)
    for density in sorted({density for density, _ in TARGETS} | {*BELOW_CROSSOVER}):
        dense = nn.Linear(SIZE, SIZE).eval()
        masks = prunekit.Masks({"weight": torch.rand(SIZE, SIZE, generator=generator) < density})
        masks.apply(dense)
        sparse, _ = run_sparse(dense, masks, torch.randn(1, SIZE, generator=generator), batch_sizes=BATCHES)
        for batch in BATCHES:
            inputs = torch.randn(batch, SIZE, generator=generator)
            calls = {"ours": lambda: sparse(inputs), "theirs": lambda: dense(inputs)}  # noqa: B023 - called in this turn
            times = interleaved(calls, repeats=31, warmup=3)
            what = f"linear 4096x4096 at density {density:g}, batch {batch}"
            yield Row(what, times["ours"], "dense", times["theirs"], TARGETS.get((density, batch), NEVER_SLOWER))


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    for row in rows():
        print(f"{row.what}: {row.ours:.3f} {row.unit}, {row.theirs:.3f} {row.unit}, {row.ratio:.3f} of {row.target}")
