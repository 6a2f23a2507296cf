"""Unroll any layer that has a view into one matrix for flat inputs of one shape.

The view is enough: applied to the numbers 1, 2, 3, ..., ``inputs_at`` shows which input each weight multiplies;
applied to 0, 1, 2, ..., ``outputs_at`` shows which output the product is added to; the output of the module for zeros
is its bias. This module must not know any kind of layer.
"""

import torch

from prunekit.deployment.sparse.csr_matrix import CompressedRows
from prunekit.deployment.sparse.products import MatrixProduct
from prunekit.layers.view import LayerView


def unrolled_entries(view: LayerView, input_shape: tuple[int, ...]) -> int:
    """Return the upper bound of the entries in the matrix of a layer: kept weights x positions."""
    positions = view.positions(torch.empty(1, *input_shape, device="meta"))
    return int(view.weight.count_nonzero()) * positions


def unroll(view: LayerView, input_shape: tuple[int, ...]) -> MatrixProduct:
    """Return a layer as one matrix product, built from its nonzero weights.

    Args:
        view: the view of a layer on the CPU whose outputs are its weights times its inputs, plus a constant.
        input_shape: shape of one sample.
    """
    weight = view.to_matrix(view.weight.detach())
    inputs = weight.new_zeros(1, *input_shape)
    outputs = view.module(inputs).detach()
    # float64 represents these counts exactly, and unlike integers it can be unfolded.
    numbers = torch.arange(1, inputs.numel() + 1, dtype=torch.float64).reshape(inputs.shape)
    everywhere = slice(0, view.positions(inputs))
    sources = view.inputs_at(numbers, everywhere)[:, :, 0].long()  # [G, M, fan]; 0 is padding
    targets = view.outputs_at(torch.arange(outputs.numel()).reshape(outputs.shape), everywhere)[:, :, 0]  # [G, M, out]
    groups, units, connections = weight.nonzero(as_tuple=True)
    rows, columns = targets[groups, :, units], sources[groups, :, connections]  # [entries, M]
    values = weight[groups, units, connections].unsqueeze(1).expand(columns.shape)
    inside = columns > 0
    matrix = CompressedRows.from_entries(
        rows[inside], columns[inside] - 1, values[inside], (outputs.numel(), inputs.numel())
    )
    return MatrixProduct(matrix, outputs.reshape(-1).clone(), input_shape, tuple(outputs.shape[1:]))
