"""The paper's network at full size with its three top layers run sparse, against the dense network, at batch 1.

Structure f=1/256 5b=1/128 5a=1/32: 12 % of the weights are left. There is no trained network of that size here, so the
weights and the masks are random, of these densities; times do not depend on which weights they are. The convolutions
are dense, so what the whole network can gain is what its three top layers take. Layers are timed where they are, in the
running network: alone, again and again, their weights would lie in a cache. Run alone it prints every layer.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from measuring import Row
from prunekit_deepid2plus.network import Network, NetworkSettings
from torch import Tensor, nn

import prunekit
from prunekit.deployment.sparse import run_sparse, save_csr

STRUCTURE = {"local5a": 1 / 32, "local5b": 1 / 128, "f": 1 / 256}
LAYERS, FILE = 0.12, 0.16
TURNS, RUNS = 12, 6
NEVER_SLOWER = 1.05


class Stopwatch:
    """Times a network and its layers while it runs.

    Of the runs of one turn the first does not count: it finds in the cache what the other network has left there.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self._times: dict[str, list[float]] = {name: [] for name in [*names, "whole"]}
        for name in names:
            module = network.get_submodule(name)
            vars(module)["forward"] = self._timed(module.forward, self._times[name])

    def run(self, network: nn.Module, image: Tensor) -> None:
        """Run the network once."""
        began = time.perf_counter()
        network(image)
        self._times["whole"].append((time.perf_counter() - began) * 1e3)

    def median(self, name: str) -> float:
        """Return the ms of a layer, or of the "whole"."""
        return statistics.median(value for number, value in enumerate(self._times[name]) if number % RUNS)

    def _timed(self, forward: Callable[[Tensor], Tensor], times: list[float]) -> Callable[[Tensor], Tensor]:
        def call(inputs: Tensor) -> Tensor:
            began = time.perf_counter()
            outputs = forward(inputs)
            times.append((time.perf_counter() - began) * 1e3)
            return outputs

        return call


@torch.no_grad()
def compare() -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the ms of the "whole" and of each layer within it, ours and theirs, and the bytes of both files."""
    torch.manual_seed(0)
    dense = Network(NetworkSettings()).eval()
    masks = prunekit.Masks(
        {
            f"{name}.weight": torch.rand(dense.get_submodule(name).get_parameter("weight").shape) < density
            for name, density in STRUCTURE.items()
        }
    )
    masks.apply(dense)
    image = torch.randn(1, 3, 112, 96)
    sparse, reports = run_sparse(dense, masks, image, batch_sizes=(1,))
    wanted = dense(image)
    assert torch.allclose(sparse(image), wanted, atol=1e-5 * float(wanted.abs().max()))
    with tempfile.TemporaryDirectory() as folder:
        save_csr(Path(folder) / "sparse", dense, masks, reports)
        safetensors.torch.save_file(dense.state_dict(), Path(folder) / "dense")
        sizes = {name: (Path(folder) / name).stat().st_size for name in ("sparse", "dense")}
    names = [name for name, module in dense.named_children() if name.startswith(("conv", "local")) or name == "f"]
    watches = {"ours": Stopwatch(sparse, names), "theirs": Stopwatch(dense, names)}
    networks = {"ours": sparse, "theirs": dense}
    for _ in range(TURNS):
        for side, network in networks.items():
            for _ in range(RUNS):
                watches[side].run(network, image)
    return {name: {side: watch.median(name) for side, watch in watches.items()} for name in [*names, "whole"]}, sizes


def rows() -> Iterator[Row]:
    """Measure in turns."""
    times, sizes = compare()
    for name in STRUCTURE:
        yield Row(f"the paper's {name}, batch 1", times[name]["ours"], "dense", times[name]["theirs"], NEVER_SLOWER)
    ours, theirs = (sum(times[name][side] for name in STRUCTURE) for side in ("ours", "theirs"))
    yield Row("these three layers together", ours, "dense", theirs, LAYERS)
    # What is not in these layers stays as it is.
    whole = times["whole"]
    most = 1 - (1 - LAYERS) * theirs / whole["theirs"]
    yield Row("the paper's whole network, batch 1", whole["ours"], "dense", whole["theirs"], round(most, 2))
    yield Row("its file", sizes["sparse"] / 1e6, "dense", sizes["dense"] / 1e6, FILE, unit="MB")


def main() -> None:
    """Print every layer, and the whole."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    times, sizes = compare()
    for name, pair in times.items():
        share = pair["theirs"] / times["whole"]["theirs"]
        print(
            f"{name:8} {pair['ours']:8.3f} ms {pair['theirs']:8.3f} ms {pair['ours'] / pair['theirs']:6.3f} {share:.3f}"
        )
    print(f"file     {sizes['sparse']:,} bytes {sizes['dense']:,} bytes {sizes['sparse'] / sizes['dense']:.3f}")


if __name__ == "__main__":
    main()
