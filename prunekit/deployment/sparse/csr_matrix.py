"""A matrix in compressed sparse rows, as plain tensors that a module can copy, move and store.

torch's own CSR tensors cannot be deep-copied, nor written by safetensors, so they are put together when used, and kept
for the next use: at one sample a product takes microseconds, and what surrounds it counts. Indices are 32 bits: MKL
takes no others, and torch converts longer ones at every product, which makes it up to 2.5 times as slow. This module
must not know layers.
"""

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64)
"""The dtypes of which MKL has sparse products."""

# torch says once in a process that CSR is in beta; it says so here, where nobody is bothered.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
    torch.sparse_csr_tensor([0, 1], [0], [1.0], check_invariants=True)


class CompressedRows(nn.Module):
    """A matrix of which only the entries that are not 0 are stored.

    Args:
        crow_indices: int ``[rows + 1]``, where each row begins in the other two.
        col_indices: int ``[entries]``, ascending in each row.
        values: ``[entries]``.
        columns: how many there are.
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
        """Compress entries in any order; those in one place are added."""
        places, of_entry = torch.unique(rows * shape[1] + columns, return_inverse=True)
        sums = values.new_zeros(len(places)).index_add_(0, of_entry, values)
        return cls._of_sorted(places // shape[1], places % shape[1], sums, shape)

    @classmethod
    def _of_sorted(cls, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Self:
        ends = torch.bincount(rows, minlength=shape[0]).cumsum(0)
        return cls(torch.cat([ends.new_zeros(1), ends]), columns, values, shape[1])

    def tensor(self) -> Tensor:
        """Return the matrix as torch's CSR tensor; it shares the memory of this one."""
        values = self.values
        # Whatever converts, moves or loads a module puts other tensors there, or other numbers into the same ones.
        if self._tensor is None or self._made_of is not values:
            parts = (self.crow_indices, self.col_indices, values)
            self._tensor = torch.sparse_csr_tensor(*parts, self.shape, check_invariants=False)
            self._made_of = values
        return self._tensor

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tensor": None, "_made_of": None}

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, entries={len(self.values)}"
