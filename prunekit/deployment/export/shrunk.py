"""Format ``shrunk``: the network without its removed units; its layers are smaller and dense."""

from pathlib import Path

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.deployment.shrinking.files import encode_shrunk, load_shrunk
from prunekit.deployment.shrinking.shrink import shrink


def _encode(pruned: PrunedNetwork) -> Encoded:
    shrunk = shrink(pruned.network, pruned.samples, pruned.masks, view_of=pruned.view_of)
    data = encode_shrunk(shrunk.network, pruned.view_of)
    before, after = shrunk.report.units
    unchanged = ("no unit was removed, so this is the dense network; prune whole channels with --pattern channels",)
    return Encoded(data, (*str(shrunk.report).splitlines(), *(unchanged if before == after else ())))


def _reopen(path: Path, pruned: PrunedNetwork) -> Run:
    network = load_shrunk(pruned.network, path, view_of=pruned.view_of)
    return lambda samples: samples.through(network)


FORMAT = ExportFormat(
    "shrunk",
    "The network without its removed units: smaller and dense.",
    _encode,
    _reopen,
    tolerance=1e-5,  # only the order in which constants are added changes
    load="network = prunekit.load_shrunk(network, {path})",
)
