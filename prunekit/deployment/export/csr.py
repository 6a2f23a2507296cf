"""Format ``csr``: a network whose layers run sparse on the CPU if that was measured to be faster on this machine."""

from pathlib import Path

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork, Run
from prunekit.deployment.export.formats import SINGLE_PRECISION
from prunekit.deployment.sparse.conversion import LayerReport, run_sparse
from prunekit.deployment.sparse.csr_files import encode_csr, load_csr
from prunekit.errors import ExportError
from prunekit.layers.lookup import display_name


def _encode(pruned: PrunedNetwork) -> Encoded:
    if not pruned.masks.tensors:
        raise ExportError(
            f"{pruned.name} has no masks and no zeros, so no layer can run sparse; export it with --to dense"
        )
    _, reports = run_sparse(pruned.network, pruned.masks, pruned.samples, view_of=pruned.view_of)
    return Encoded(encode_csr(pruned.network, pruned.masks, reports), tuple(map(_note, reports)))


def _note(report: LayerReport) -> str:
    if report.reason:
        return f"{display_name(report.layer)}: dense ({report.reason})"
    ratios = ", ".join(f"{timing.ratio:.2f} at batch {timing.batch_size}" for timing in report.timings)
    return f"{display_name(report.layer)}: sparse, {ratios} of the dense time on this machine"


def _reopen(path: Path, pruned: PrunedNetwork) -> Run:
    network = load_csr(path, pruned.network, pruned.samples, view_of=pruned.view_of)
    return lambda samples: samples.through(network)


FORMAT = ExportFormat(
    "csr",
    "Layers that run sparse on a CPU if that is faster.",
    _encode,
    _reopen,
    SINGLE_PRECISION,
    load="network = prunekit.load_csr({path}, network, sample_input)",
)
