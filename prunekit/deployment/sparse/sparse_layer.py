"""The module that replaces a layer that runs sparse; it selects the form by the number of samples.

This module must not know how forms are chosen, or the network around a layer.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.deployment.sparse.csr_matrix import DTYPES, CompressedRows
from prunekit.deployment.sparse.products import MatrixProduct, TapProducts
from prunekit.deployment.sparse.unrolling import unroll, unrolled_entries
from prunekit.errors import ConfigError, TrainingError
from prunekit.layers.torch_views import ConvolutionView, LinearView
from prunekit.layers.view import LayerView

DENSE = "dense"
# Above this, the matrix of an unrolled layer with shared weights dominates the memory of the layer.
_MOST_ENTRIES_PER_WEIGHT = 2


class SparseLayer(nn.Module):
    """A layer that runs sparse on the CPU, for inference only, or dense at sizes where that was measured to be faster.

    Args:
        product: the sparse weights of the layer.
        forms: number of samples (rows for a linear layer, so each token counts) -> form; other numbers take the form
            of the nearest one by ratio.
        dense: the dense layer with its dropped weights zero; required if a form is "dense".
    """

    def __init__(
        self, product: MatrixProduct | TapProducts, forms: Mapping[int, str], dense: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.product = product
        self.dense = dense
        self.forms = dict(sorted(forms.items()))
        sizes = list(self.forms)
        self._limits = [math.sqrt(size * above) for size, above in pairwise(sizes)]
        self._form_of_stretch = list(self.forms.values())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the layer, contiguous, for the inputs that the dense layer takes.

        Raises:
            TrainingError: in training mode, or if a gradient is required.
            ConfigError: inputs of another dtype or device than the weights, or of a shape that the layer was not
                built for; ``torch.autocast``.
        """
        # Keep the work per call short: a product with one sample may be as fast as ten lines of Python.
        if self.training or (inputs.requires_grad and torch.is_grad_enabled()):
            raise TrainingError(
                "a layer that runs sparse does not support gradients; call eval() and use torch.no_grad() for "
                "inference, or train the dense model with its masks and call run_sparse again"
            )
        product = self.product
        form = self._form_of_stretch[bisect_left(self._limits, product.size(inputs))]
        if form == DENSE:
            assert self.dense is not None
            outputs: Tensor = self.dense(inputs)
            return outputs
        try:
            return product.forward(inputs, form)
        except RuntimeError as error:
            # The error of torch names a kernel, although the dtype or the device is wrong.
            weights = product.constant
            fits = weights.dtype in DTYPES and (inputs.dtype, inputs.device) == (weights.dtype, torch.device("cpu"))
            if fits and not torch.is_autocast_enabled("cpu"):
                raise
            raise ConfigError(
                f"a layer that runs sparse, with weights of {weights.dtype} on {weights.device}, got {inputs.dtype} on "
                f"{inputs.device}; both must be float32 or float64 on the CPU, without torch.autocast"
            ) from error

    def extra_repr(self) -> str:
        return ", ".join(f"{size}: {form}" for size, form in self.forms.items())


def why_dense(view: LayerView, input_shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return why a layer cannot run sparse; "" if it can.

    Args:
        view: the view of a layer that is called with one tensor.
        input_shape: shape of one sample of this tensor.
        dtype: its dtype.
    """
    weight = view.weight
    if weight.device.type != "cpu":
        return f"is on {weight.device}, but sparse kernels run on the CPU only"
    if weight.dtype not in DTYPES or dtype != weight.dtype:
        return f"has weights of {weight.dtype} and inputs of {dtype}; sparse kernels take float32 or float64 for both"
    if isinstance(view, LinearView | ConvolutionView):
        return ""
    most = _MOST_ENTRIES_PER_WEIGHT * weight.numel()
    if (entries := unrolled_entries(view, input_shape)) > most:
        return f"would be unrolled into {entries} entries, more than {most}, twice the number of its weights"
    return ""


def make_product(view: LayerView, input_shape: tuple[int, ...]) -> MatrixProduct | TapProducts:
    """Return the sparse product of a layer, built from its nonzero weights.

    Args:
        view: the view of a float32 or float64 layer on the CPU.
        input_shape: shape of one sample.
    """
    if isinstance(view, LinearView):
        assert isinstance(view.module, nn.Linear)
        weight = view.weight.detach()
        bias = weight.new_zeros(len(weight)) if view.module.bias is None else view.module.bias.detach().clone()
        return MatrixProduct(CompressedRows.from_dense(weight), bias, (view.fan,), (view.outputs,))
    if isinstance(view, ConvolutionView):
        return TapProducts(view.module)
    return unroll(view, input_shape)
