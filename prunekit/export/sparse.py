"""Format ``sparse``: a sparse checkpoint, the kept values and packed masks. It is small on disk, dense once loaded."""

from prunekit.errors import ExportError
from prunekit.export.formats import SAME_WEIGHTS, Encoded, Format, reopen_weights
from prunekit.pruned import Pruned
from prunekit.sparse_checkpoints import encode_sparse, load_weights


def _encode(pruned: Pruned) -> Encoded:
    if not pruned.masks.tensors:
        raise ExportError(f"{pruned.name} has no masks and no zeros, so there is nothing to leave out; export it dense")
    return Encoded(encode_sparse(pruned.network.state_dict(), pruned.masks))


FORMAT = Format(
    _encode,
    reopen_weights(load_weights),
    SAME_WEIGHTS,
    load="network.load_state_dict(prunekit.load_weights({path}))",
)
