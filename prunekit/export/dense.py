"""Format ``dense``: plain safetensors, zeros baked in. Anything that reads safetensors loads it into the network."""

import copy
from pathlib import Path

from safetensors.torch import load_file

from prunekit.export.formats import Encoded, Format, Run
from prunekit.pruned import Pruned
from prunekit.sparse_checkpoints import encode_weights


def _encode(pruned: Pruned) -> Encoded:
    return Encoded(encode_weights(pruned.network.state_dict()))


def _reopen(path: Path, pruned: Pruned) -> Run:
    network = copy.deepcopy(pruned.network)
    network.load_state_dict(load_file(path))
    return lambda samples: samples.through(network)


FORMAT = Format(
    _encode,
    _reopen,
    tolerance=0,  # the same bits
    load='network.load_state_dict(safetensors.torch.load_file("{path}"))',
)
