"""Format ``dense``: plain safetensors with dropped weights as zeros, for any reader of safetensors."""

from safetensors.torch import load_file

from prunekit.contracts.export_format import Encoded, ExportFormat, PrunedNetwork
from prunekit.deployment.export.formats import SAME_WEIGHTS, reopen_weights
from prunekit.masks.weight_files import encode_weights


def _encode(pruned: PrunedNetwork) -> Encoded:
    return Encoded(encode_weights(pruned.network.state_dict()))


FORMAT = ExportFormat(
    "dense",
    "Plain safetensors with dropped weights as zeros.",
    _encode,
    reopen_weights(load_file),
    SAME_WEIGHTS,
    load="network.load_state_dict(safetensors.torch.load_file({path}))",
)
