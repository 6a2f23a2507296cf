"""Format ``dense``: plain safetensors, zeros baked in. Anything that reads safetensors loads it into the network."""

from safetensors.torch import load_file

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork
from prunekit.deployment.export.formats import SAME_WEIGHTS, reopen_weights
from prunekit.masks.weight_files import encode_weights


def _encode(pruned: PrunedNetwork) -> Encoded:
    return Encoded(encode_weights(pruned.network.state_dict()))


FORMAT = ExportFormat(
    "dense",
    "Plain safetensors with the zeros in it.",
    _encode,
    reopen_weights(load_file),
    SAME_WEIGHTS,
    load="network.load_state_dict(safetensors.torch.load_file({path}))",
)
