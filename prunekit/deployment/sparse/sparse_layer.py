"""What stands in a network where a layer runs sparse. It dispatches on the number of samples.

This module must not know how forms are chosen, nor what network a layer is in.
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
# Above that, the matrix of an unrolled layer with shared weights takes more memory than all else that it has.
_MOST_ENTRIES_PER_WEIGHT = 2


class SparseLayer(nn.Module):
    """A layer that runs sparse, for inference on the CPU, and dense where that was found to be faster.

    Args:
        product: the layer's sparse weights.
        forms: number of samples (of a linear layer: rows, tokens count) -> form; of a number that is not there, the
            form of the nearest one, by ratio, is taken.
        dense: the layer itself, its dropped weights zero; needed where a form is "dense".
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
        """Return the layer's outputs, contiguous; a linear layer's, a convolution's or a plugin's inputs go in.

        Raises:
            TrainingError: in training mode, or when a gradient is asked for.
            ConfigError: inputs of another dtype or device than the weights, or of a shape the layer was not made for;
                ``torch.autocast``.
        """
        # What runs at each call is kept short: at one sample a product may take no longer than ten lines of Python.
        if self.training or (inputs.requires_grad and torch.is_grad_enabled()):
            raise TrainingError(
                "a layer that runs sparse has no gradients; call eval() and use torch.no_grad() for inference, "
                "or train the dense model under its masks and make it sparse again"
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
            # torch's own error names a kernel, where it is the dtype or the device that does not fit.
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
    """Return why a layer cannot run sparse; "" where it can.

    Args:
        view: of a layer that is called with one tensor.
        input_shape: of one sample of that.
        dtype: of that.
    """
    weight = view.weight
    if weight.device.type != "cpu":
        return f"is on {weight.device}, and sparse kernels are for the CPU"
    if weight.dtype not in DTYPES or dtype != weight.dtype:
        return f"has weights of {weight.dtype} and inputs of {dtype}; sparse kernels are for float32 and float64"
    if isinstance(view, LinearView | ConvolutionView):
        return ""
    most = _MOST_ENTRIES_PER_WEIGHT * weight.numel()
    if (entries := unrolled_entries(view, input_shape)) > most:
        return f"would be unrolled into {entries} entries, more than {most}: twice its weights"
    return ""


def make_product(view: LayerView, input_shape: tuple[int, ...]) -> MatrixProduct | TapProducts:
    """Return the sparse product of a layer, from its weights that are not 0.

    Args:
        view: of a layer on the CPU, float32 or float64.
        input_shape: of one sample.
    """
    if isinstance(view, LinearView):
        assert isinstance(view.module, nn.Linear)
        weight = view.weight.detach()
        bias = weight.new_zeros(len(weight)) if view.module.bias is None else view.module.bias.detach().clone()
        return MatrixProduct(CompressedRows.from_dense(weight), bias, (view.fan,), (view.outputs,))
    if isinstance(view, ConvolutionView):
        return TapProducts(view.module)
    return unroll(view, input_shape)
