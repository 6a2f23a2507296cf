"""The criterion "sparsegpt": drop weights column by column and compensate in the later columns of the layer."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.sums import add, join, total, unfolded
from prunekit.errors import ConfigError, DataError, MaskError
from prunekit.masks.selection import (
    Blocks,
    Channels,
    NofM,
    Pattern,
    Quota,
    Scope,
    Units,
    among,
    top_counts,
    unit_shares,
)


@attrs.define(eq=False)
class SparseGpt(Criterion):
    """Drop weights whose error later columns can compensate, and compensate it (SparseGPT: Frantar, Alistarh, 2023).

    Algorithm 1 of the paper. H is ``2 X X^T / samples`` of the inputs, plus ``damping`` times its mean diagonal,
    and C is the upper Cholesky factor of its inverse. Columns are processed in blocks. When a block is reached, its
    weights are ranked by ``w^2 / C_cc^2``, and the error of each dropped weight is subtracted from the later columns,
    ``w -= w_c / C_cc * C_c``. With N:M, the mask of every m columns is chosen when the first of them is reached.

    In scope "layer", the paper's, all rows compete within a block, and each block keeps its share; in scope "unit" each
    row has its own share. The count of the whole layer is exact: shares are rounded so that they add up. If the layer
    already has a mask, a block's share is proportional to the connections it has left, and dropped connections remain
    dropped.

    Where the paper is silent, or differs: positions of a convolution count as samples, and each of its groups has its
    own Hessian; N:M in a convolution orders the columns tap by tap, so that m neighbours are m input channels; weights
    of an input that was always zero are dropped first, and those kept do not change (the published code also sets them
    to zero). Sums are in double precision: 8 bytes times fan^2 for each group.
    """

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    block: int = option(128, "columns whose mask is chosen together", low=1)
    damping: float = option(0.01, "fraction of the Hessian's mean diagonal that is added to its diagonal", low=1e-8)

    _products: Tensor | None = attrs.field(default=None, init=False)  # [G, fan, fan]
    _samples: int = attrs.field(default=0, init=False)
    _weight: Tensor | None = attrs.field(default=None, init=False)
    _repaired: Tensor | None = attrs.field(default=None, init=False)

    def check(self, scope: Scope, pattern: Pattern | None) -> None:
        """Refuse joint selection, because masks are chosen while weights are repaired, and patterns across columns."""
        if scope == "global":
            raise ConfigError(
                "criterion 'sparsegpt' selects and repairs layer by layer, not with scope='global'; "
                "use scope='layer' or scope='unit', or criterion 'obs'"
            )
        if isinstance(pattern, Blocks | Units | Channels):
            raise ConfigError(
                f"criterion 'sparsegpt' selects column by column, so it cannot keep the pattern {pattern}; "
                "use a pattern N:M, or criterion 'obs'"
            )

    def observe(self, seen: Observation) -> None:
        """Add the products of a batch's inputs."""
        for inputs in unfolded(seen.layer, seen.inputs):
            self._products = add(self._products, inputs.mT @ inputs)
            self._samples += inputs.shape[1]

    def end_pass(self) -> bool:
        """Add up the sums of all ranks."""
        self._products, self._samples = join(self._products, self._samples)
        return False

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``w^2 / C_cc^2`` of the weights before any repair, 0 for dead inputs: float64 ``[G, out, fan]``.

        Raises:
            DataError: no batch was observed.
        """
        self._weight = weight.double()
        factor, alive = self._factor(torch.arange(weight.shape[2], device=weight.device))
        return _scores(self._weight, factor, alive)

    def _factor(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return C, float64 ``[G, fan, fan]``, and whether each input is alive, bool ``[G, fan]``, in column order."""
        hessian = total(self._products, self.name, "data")[:, order][:, :, order] * (2 / self._samples)
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        alive = diagonal > 0
        damping = self.damping * diagonal.mean(1, keepdim=True)
        # A dead input correlates with no other one, so any positive number works.
        diagonal.add_(torch.where(alive, damping, 1.0))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True), alive

    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        """Return the mask, bool ``[G, out, fan]``, and store the weight repaired for it.

        Raises:
            ConfigError: scope "global", or a pattern of blocks, whole units or channels.
            MaskError: fewer connections are left than must be kept, in total or among m neighbours.
        """
        self.check(quota.scope, quota.pattern)
        if self._weight is None:
            raise DataError("criterion 'sparsegpt' has no scores to select from; call score before select")
        fan = scores.shape[2]
        order = torch.arange(fan, device=scores.device)
        if isinstance(quota.pattern, NofM):
            order = order.reshape(quota.fan_shape[0], -1).T.flatten()
        candidates = torch.ones_like(scores, dtype=torch.bool) if quota.candidates is None else quota.candidates
        factor, alive = self._factor(order)
        sweep = _Sweep(self._weight[..., order], factor, alive, candidates[..., order])
        for part, counts in self._parts(quota, candidates[..., order]):
            sweep.drop(part, counts)
        back = order.argsort()
        self._repaired = sweep.weight[..., back]
        return sweep.mask[..., back]

    def _parts(self, quota: Quota, candidates: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield runs of columns whose masks are chosen together, with the number of connections each line keeps.

        A line is a set of competitors, either a whole group or one of its rows; counts are ``[G, lines]``.
        """
        groups, out, fan = candidates.shape
        if isinstance(quota.pattern, NofM):
            n, m = quota.pattern.n, quota.pattern.m
            short = candidates.reshape(groups, out, -1, m).sum(3) < n
            if bool(short.any()):
                raise MaskError(
                    f"pattern {n}:{m} needs {n} of every {m} neighbours, but an earlier mask leaves fewer; use a "
                    "pattern that fits that mask, or start without it"
                )
            for start in range(0, fan, m):
                yield slice(start, start + m), torch.full((groups, out), n)
            return
        parts = [slice(start, min(start + self.block, fan)) for start in range(0, fan, self.block)]
        if quota.scope == "unit":
            lines = groups * out
            room = torch.stack([candidates[..., part].sum(2).flatten() for part in parts], 1).cpu()
            shares = proportional_shares(unit_shares(quota, lines, fan), room).reshape(groups, out, -1)
        else:
            room = torch.stack([candidates[..., part].sum((1, 2)) for part in parts], 1).cpu()
            whole = unit_shares(quota, 1, groups * out * fan)
            shares = proportional_shares(whole, room.reshape(1, -1)).reshape(groups, 1, -1)
        for index, part in enumerate(parts):
            yield part, shares[..., index]

    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight that was repaired while the mask was chosen."""
        return weight if self._repaired is None else self._repaired.to(weight.dtype)


def proportional_shares(counts: Tensor, room: Tensor) -> Tensor:
    """Divide each line's count among its parts in proportion to their room, exactly.

    >>> proportional_shares(torch.tensor([5]), torch.tensor([[4, 4, 2]]))
    tensor([[2, 2, 1]])

    Args:
        counts: int64 ``[lines]``, at most the total room of each line.
        room: int64 ``[lines, parts]``.

    Returns:
        int64 ``[lines, parts]``; lines sum to ``counts``, and no part exceeds its room.
    """
    ends = room.cumsum(1)
    whole = ends[:, -1:].clamp(min=1)
    # Rounded at the ends of parts rather than part by part, so that rounding errors do not add up.
    kept = (2 * counts.unsqueeze(1) * ends + whole) // (2 * whole)
    return kept.diff(dim=1, prepend=torch.zeros_like(kept[:, :1]))


@attrs.define(eq=False)
class _Sweep:
    """The weights ``[G, out, fan]`` in the middle of algorithm 1, from the first column to the last."""

    weight: Tensor
    factor: Tensor
    alive: Tensor
    candidates: Tensor
    mask: Tensor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.weight = self.weight.clone()
        self.mask = self.candidates.clone()

    def drop(self, part: slice, counts: Tensor) -> None:
        """Choose the mask of a run of columns, with ``counts`` ``[G, lines]``, and compensate in the later columns.

        The errors are passed to the columns after the run in one product (the lazy batches of the paper).
        """
        factor = self.factor[:, part, part]
        scores = among(_scores(self.weight[..., part], factor, self.alive[:, part]), self.candidates[..., part])
        self.mask[..., part] = top_counts(scores.reshape(counts.numel(), -1), counts.flatten()).reshape(scores.shape)
        inner, errors = self.weight[..., part], []
        for column in range(scores.shape[2]):
            lost = inner[..., column] * ~self.mask[..., part][..., column]
            errors.append(lost / factor[:, column, column].unsqueeze(1))
            inner[..., column:] -= errors[-1].unsqueeze(2) * factor[:, column, column:].unsqueeze(1)
            inner[..., column] *= self.mask[..., part][..., column]
        self.weight[..., part.stop :] -= torch.stack(errors, 2) @ self.factor[:, part, part.stop :]


def _scores(weight: Tensor, factor: Tensor, alive: Tensor) -> Tensor:
    pivots = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return torch.where(alive.unsqueeze(1), (weight / pivots).square(), 0.0)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [SparseGpt]
