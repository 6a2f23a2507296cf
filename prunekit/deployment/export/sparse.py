"""Format ``sparse``: a checkpoint of kept values and packed masks, small on disk and dense once loaded."""

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork
from prunekit.deployment.export.formats import SAME_WEIGHTS, reopen_weights
from prunekit.errors import ExportError
from prunekit.masks.weight_files import encode_sparse, load_weights


def _encode(pruned: PrunedNetwork) -> Encoded:
    if not pruned.masks.tensors:
        raise ExportError(
            f"{pruned.name} has no masks and no zeros, so a sparse file saves nothing; export it with --to dense"
        )
    return Encoded(encode_sparse(pruned.network.state_dict(), pruned.masks))


FORMAT = ExportFormat(
    "sparse",
    "Kept values and packed masks: small on disk, dense in memory.",
    _encode,
    reopen_weights(load_weights),
    SAME_WEIGHTS,
    load="network.load_state_dict(prunekit.load_weights({path}))",
)
