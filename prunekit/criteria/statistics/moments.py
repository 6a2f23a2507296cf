"""Streaming means and summed squares of columns, and the centring of each block of samples.

Every block is centred on its own means and merged into the running moments in double precision, so that neither a large
or drifting mean nor a long stream loses digits. This module must not know that a correlation has two sides.
"""

import math
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from prunekit.distributed.ranks import sum_over_ranks, take_from_first
from prunekit.errors import DataError

Piece = tuple[slice, slice]  # of cells and of features

# A block is processed in pieces of this many bytes, so that each step finds the previous one's results in the cache.
_PIECE_BYTES = 4 * 2**20
# Fewest features of a piece if a cell has that many: memory is read in lines.
_LEAST_FEATURES = 256
# Squares summed in single precision before double precision takes over.
_RUN = 8
# Numbers on a coarse grid (those with a large mean) have squares whose last bits follow a pattern, so that rounding
# of their sums is biased, by 5e-7. Multiplying by the golden ratio, the number worst approximated by fractions, removes
# the bias.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
# Larger powers of two do not fit a single-precision number together with their inverse.
_LARGEST_EXPONENT = 120


@attrs.frozen(eq=False)
class Block:
    """The centred samples of one block, times the columns' ``scale``; sums are float64 ``[cells, features]``."""

    centred: Tensor  # [cells, samples, features]
    rest: Tensor  # sum of the centred values: the residual of rounding the centre
    step: Tensor  # this block's mean - the mean before
    still: Tensor  # bool [cells] on the CPU: all features of the cell are constant in this block


@attrs.define(eq=False)
class Moments:
    """Means and summed squared deviations of the columns, float64 ``[cells, features]``.

    Deviations are multiplied by ``scale``, about 1 / the largest deviation of the first block that has any. This keeps
    squares and products of very small and very large numbers in range.

    Attributes:
        side: the name of the values in errors: "inputs" or "outputs".
        mean: mean of each column.
        squares: sum of the squared, scaled deviations of each column.
        scale: factor on the deviations of each column.
    """

    side: str
    mean: Tensor
    squares: Tensor
    scale: Tensor

    @classmethod
    def start(cls, side: str, values: Tensor) -> "Moments":
        """Return empty moments for blocks shaped like ``values``."""
        zeros = torch.zeros_like(values[:, 0], dtype=torch.float64)
        return cls(side, zeros, zeros.clone(), torch.ones_like(zeros))

    def join(self, values: Tensor, before: int) -> Block:
        """Merge a block into the moments by the pairwise update of Chan, Golub, LeVeque (1983).

        Args:
            values: ``[cells, samples, features]``, float32 or float64; overwritten by the centred values.
            before: number of samples merged before this block.

        Raises:
            DataError: a value is NaN, infinite, or too large to square.
        """
        samples = values.shape[1]
        step, rest, squares = (torch.empty_like(self.mean) for _ in range(3))
        for cells, features in _pieces(values):
            piece, part = (cells, features), values[cells, :, features]
            low, high = part.amin(1), part.amax(1)
            self._check(bool((high - low).isfinite().all()), values)
            # The centre of a constant column is exactly the constant, however the mean is rounded.
            centre = part.mean(1).clamp(low, high)
            step[piece] = centre.double() - self.mean[piece]
            self._choose_scales(piece, (high - centre).maximum(centre - low), step[piece] if before else None)
            part.sub_(centre.unsqueeze(1)).mul_(self.scale[piece].to(part.dtype).unsqueeze(1))
            rest[piece] = part.sum(1)
            squares[piece] = _sum_of_squares(part)
        still = (squares == 0).all(1).cpu()
        step.mul_(self.scale).add_(rest, alpha=1 / samples)
        squares.addcmul_(rest, rest, value=-1 / samples).clamp_(min=0)
        weight = samples / (before + samples)
        self.squares += squares.addcmul_(step, step, value=before * weight)
        self.mean += step / self.scale * weight
        self._check(bool(self.squares.isfinite().all()), values)
        return Block(values, rest, step, still)

    def _check(self, finite: bool, values: Tensor) -> None:
        if finite:
            return
        count = int((~values.isfinite()).sum())
        fault = f"{count} of {values.numel()} values are NaN or infinite" if count else "values are too large to square"
        raise DataError(f"{fault} in the {self.side} of a layer; check the data and the weights of the model")

    def _choose_scales(self, piece: Piece, deviation: Tensor, step: Tensor | None) -> None:
        """Choose the scales of columns that were constant so far, whose sums are all still zero."""
        if step is not None:
            deviation = deviation.maximum(step.abs().to(deviation.dtype))
        exponent = torch.frexp(deviation).exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        # Rounded to single precision first, so that it is the same number in both precisions.
        scale = torch.ldexp(torch.full_like(deviation, _GOLDEN_RATIO, dtype=torch.float32), -exponent)
        self.scale[piece] = torch.where(self.squares[piece] == 0, scale.double(), self.scale[piece])

    def inverse_norm(self) -> Tensor:
        """Return 1 / sqrt(summed squares), or 0 for a constant column."""
        return torch.where(self.squares > 0, self.squares.rsqrt(), 0.0)

    def join_ranks(self, before: int, total: int) -> Tensor:
        """Merge the moments of all ranks, in place, and return this rank's means minus those of all ranks.

        Scales are 1 afterwards: double precision has enough range for squares without them.

        Args:
            before: number of samples on this rank.
            total: number of samples on all ranks.
        """
        # Relative to the mean of one rank, so that columns constant on all ranks have a difference of exactly 0.
        offset = self.mean - take_from_first(self.mean)
        step = offset - sum_over_ranks(offset * (before / total))
        self.squares /= self.scale.square()
        sum_over_ranks(self.squares.addcmul_(step, step, value=before))
        self.mean -= step
        self.scale = torch.ones_like(self.scale)
        return step


def _sum_of_squares(values: Tensor) -> Tensor:
    """Return sums of squares over samples: ``[cells, samples, features]`` to float64 ``[cells, features]``."""
    cells, samples, features = values.shape
    whole = samples // _RUN * _RUN
    runs = values[:, :whole].view(cells, -1, _RUN, features).square().sum(2)
    return runs.sum(1, dtype=torch.float64) + values[:, whole:].square().sum(1)


def _pieces(values: Tensor) -> Iterator[Piece]:
    """Split ``[cells, samples, features]`` along cells and features."""
    cells, samples, features = values.shape
    columns = max(_LEAST_FEATURES, _PIECE_BYTES // (values.element_size() * samples))
    rows = max(1, columns // features)
    for cell in range(0, cells, rows):
        for feature in range(0, features, columns):
            yield slice(cell, cell + rows), slice(feature, feature + columns)
