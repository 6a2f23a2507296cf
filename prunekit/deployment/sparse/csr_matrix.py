"""A matrix in compressed sparse rows, held as plain tensors that a module can copy, move and store.

torch's CSR tensors can neither be deep-copied nor written by safetensors, so one is built at the first use and cached:
a product with one sample takes microseconds, and building would dominate it. Indices have 32 bits: MKL takes no others,
and torch converts 64-bit indices at every product, which is up to 2.5 times slower. This module must not know layers.
"""

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64)
"""Dtypes for which MKL has sparse products."""

# torch warns once per process that CSR is in beta; trigger and suppress the warning here.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
    torch.sparse_csr_tensor([0, 1], [0], [1.0], check_invariants=True)


class CompressedRows(nn.Module):
    """A matrix stored by its nonzero entries only.

    Args:
        crow_indices: int ``[rows + 1]``, where each row begins in the other two.
        col_indices: int ``[entries]``, ascending in each row.
        values: ``[entries]``.
        columns: number of columns.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor

    def __init__(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, columns: int) -> None:
        super().__init__()
        fits = values.numel() <= torch.iinfo(torch.int32).max
        index = torch.int32 if fits else torch.int64
        self.register_buffer("crow_indices", crow_indices.to(index))
        self.register_buffer("col_indices", col_indices.to(index))
        self.register_buffer("values", values)
        self.shape = (len(crow_indices) - 1, columns)
        self._tensor: Tensor | None = None
        self._made_of: Tensor | None = None

    @classmethod
    def from_dense(cls, matrix: Tensor) -> Self:
        """Compress a dense matrix."""
        matrix = matrix.detach()
        rows, columns = matrix.nonzero(as_tuple=True)
        return cls._of_sorted(rows, columns, matrix[rows, columns], (len(matrix), matrix.shape[1]))

    @classmethod
    def from_entries(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Self:
        """Compress entries in any order; entries with the same row and column are added."""
        places, of_entry = torch.unique(rows * shape[1] + columns, return_inverse=True)
        sums = values.new_zeros(len(places)).index_add_(0, of_entry, values)
        return cls._of_sorted(places // shape[1], places % shape[1], sums, shape)

    @classmethod
    def _of_sorted(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Self:
        ends = torch.bincount(rows, minlength=shape[0]).cumsum(0)
        return cls(torch.cat([ends.new_zeros(1), ends]), columns, values, shape[1])

    def tensor(self) -> Tensor:
        """Return the matrix as a CSR tensor of torch, which shares memory with this module."""
        values = self.values
        # Converting, moving or loading a module either replaces the buffers or writes into them.
        if self._tensor is None or self._made_of is not values:
            parts = (self.crow_indices, self.col_indices, values)
            self._tensor = torch.sparse_csr_tensor(*parts, self.shape, check_invariants=False)
            self._made_of = values
        return self._tensor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tensor": None, "_made_of": None}

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, entries={len(self.values)}"
