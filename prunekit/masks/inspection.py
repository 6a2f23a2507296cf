"""Find the pattern of a mask (N:M, blocks, rows, columns), and count its empty rows and columns.

A mask is read as a matrix, its first axis by all others. This module must not know names or files.
"""

from collections.abc import Callable

from torch import Tensor

_GROUPS = (2, 4, 8, 16, 32)
_LARGEST_BLOCK = 64


def find_pattern(mask: Tensor) -> str | None:
    """Return the name of a mask's pattern, or ``None`` if it has none or keeps all or nothing.

    >>> find_pattern(torch.tensor([[True, False, True, False], [False, True, True, False]]))
    '1:2'

    Patterns are tried in this order: "rows" and "columns" (each kept or dropped whole), "N:M" (exactly N kept of each M
    consecutive input channels, the smallest such M), "blocks RxC" (each kept or dropped whole, the largest powers of
    two). A mask of biases or of normalisation has no pattern.

    Args:
        mask: bool of any shape.
    """
    matrix = _matrix(mask)
    if mask.dim() < 2:  # noqa: PLR2004 - outputs, inputs
        return None
    if bool(matrix.all()) or not bool(matrix.any()):
        return None
    if bool((matrix == matrix[:, :1]).all()) and len(matrix) > 1:
        return "rows"
    if bool((matrix == matrix[:1]).all()) and len(matrix) > 1:
        return "columns"
    # In a kernel, the input channels at each tap are neighbours.
    channels = mask.movedim(1, -1).flatten(0, -2) if mask.dim() > 2 else matrix  # noqa: PLR2004 - outputs, inputs
    for size in _GROUPS:
        kept = _kept_of_each(channels, size)
        if kept is not None and kept < size:
            return f"{kept}:{size}"
    across = _largest(lambda size: _is_constant(matrix, size))
    down = _largest(lambda size: _is_constant(matrix.T, size))
    return f"blocks {down}x{across}" if down * across > 1 else None


def empty_lines(mask: Tensor) -> tuple[int, int]:
    """Return the number of empty rows and columns: dead outputs and unused inputs of a linear layer."""
    matrix = _matrix(mask)
    return int((~matrix.any(1)).sum()), int((~matrix.any(0)).sum())


def _matrix(mask: Tensor) -> Tensor:
    if mask.dim() == 0 or mask.numel() == 0:
        return mask.reshape(1, -1)
    return mask.reshape(len(mask) if mask.dim() > 1 else 1, -1)


def _kept_of_each(matrix: Tensor, size: int) -> int | None:
    """Return how many of ``size`` columns every group keeps, or ``None`` if groups differ."""
    if matrix.shape[1] % size:
        return None
    counts = matrix.reshape(len(matrix), -1, size).sum(-1)
    first = int(counts[0, 0])
    return first if bool((counts == first).all()) else None


def _is_constant(matrix: Tensor, size: int) -> bool:
    if matrix.shape[1] % size:
        return False
    groups = matrix.reshape(len(matrix), -1, size)
    return bool((groups == groups[..., :1]).all())


def _largest(holds: Callable[[int], bool]) -> int:
    size = 1
    while size < _LARGEST_BLOCK and holds(2 * size):
        size *= 2
    return size
