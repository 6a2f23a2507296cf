"""Format ``sparse``: a sparse checkpoint, the kept values and packed masks. It is small on disk, dense once loaded."""

import copy
from pathlib import Path

from prunekit.errors import ExportError
from prunekit.export.formats import Encoded, Format, Run
from prunekit.pruned import Pruned
from prunekit.sparse_checkpoints import encode_sparse, load_weights


def _encode(pruned: Pruned) -> Encoded:
    if not pruned.masks.tensors:
        raise ExportError(f"{pruned.name} has no masks and no zeros, so there is nothing to leave out; export it dense")
    return Encoded(encode_sparse(pruned.network.state_dict(), pruned.masks))


def _reopen(path: Path, pruned: Pruned) -> Run:
    network = copy.deepcopy(pruned.network)
    network.load_state_dict(load_weights(path))
    return lambda samples: samples.through(network)


FORMAT = Format(
    _encode,
    _reopen,
    tolerance=0,  # the same bits
    load='network.load_state_dict(prunekit.load_weights("{path}"))',
)
