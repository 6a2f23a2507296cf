"""Format ``dense``: plain safetensors, zeros baked in. Anything that reads safetensors loads it into the network."""

from safetensors.torch import load_file

from prunekit.deployment.export.formats import SAME_WEIGHTS, Encoded, Format, reopen_weights
from prunekit.deployment.pruned_network import PrunedNetwork
from prunekit.masks.weight_files import encode_weights


def _encode(pruned: PrunedNetwork) -> Encoded:
    return Encoded(encode_weights(pruned.network.state_dict()))


FORMAT = Format(
    _encode,
    reopen_weights(load_file),
    SAME_WEIGHTS,
    load="network.load_state_dict(safetensors.torch.load_file({path}))",
)
