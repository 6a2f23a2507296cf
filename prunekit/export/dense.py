"""Format ``dense``: plain safetensors, zeros baked in. Anything that reads safetensors loads it into the network."""

from safetensors.torch import load_file

from prunekit.export.formats import SAME_WEIGHTS, Encoded, Format, reopen_weights
from prunekit.pruned import Pruned
from prunekit.sparse_checkpoints import encode_weights


def _encode(pruned: Pruned) -> Encoded:
    return Encoded(encode_weights(pruned.network.state_dict()))


FORMAT = Format(
    _encode,
    reopen_weights(load_file),
    SAME_WEIGHTS,
    load="network.load_state_dict(safetensors.torch.load_file({path}))",
)
