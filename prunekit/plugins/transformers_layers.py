"""The view of ``Conv1D`` of GPT-2 in Hugging Face transformers, a linear layer with a transposed weight.

This module must not import transformers.
"""

from torch import Tensor, nn

from prunekit.contracts.markers import hookimpl
from prunekit.layers.view import LayerView


class TransposedLinearView(LayerView):
    """A linear layer with the weight ``[in, out]``: one group, one position; all leading dimensions are samples."""

    kind = "linear"

    def __init__(self, module: nn.Module) -> None:
        fan, outputs = module.get_parameter("weight").shape
        super().__init__(module, 1, outputs, (fan,))
        self.channel_axis = -1

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.t().unsqueeze(0)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.squeeze(0).t()

    def positions(self, inputs: Tensor) -> int:
        return 1

    def inputs_at(self, inputs: Tensor, positions: slice) -> Tensor:
        return inputs.reshape(1, 1, -1, self.fan)

    def outputs_at(self, outputs: Tensor, positions: slice) -> Tensor:
        return outputs.reshape(1, 1, -1, self.outputs)

    def resize(self, groups: int, outputs: int, channels: int, *, bias: bool) -> None:
        # Its forward always adds a bias, and reshapes to nf.
        for name, size in (("nx", channels), ("nf", outputs)):
            setattr(self.module, name, size)
        self.renew((channels, outputs), (outputs,))


@hookimpl
def prunekit_layer_views(module: nn.Module) -> LayerView | None:
    """Return the view of ``transformers.pytorch_utils.Conv1D``."""
    kind = type(module)
    transposed = (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
    return TransposedLinearView(module) if transposed else None
