"""The criterion "obs": saliencies and repair of weights by a blocked inverse of the empirical Fisher matrix."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.sums import batch_gradient, total
from prunekit.masks.selection import Scope

# Bytes of matrices processed at once; a single matrix may take more.
_BYTES = 2**26


@attrs.define(eq=False)
class BlockedObs(Criterion):
    """Keep weights by ``w_q^2 / (2 [F^-1]_qq)``, and update the kept ones to compensate for the dropped ones.

    Optimal brain surgeon (Hassibi, Stork, 1993) with the blocked empirical Fisher matrix of WoodFisher (Singh,
    Alistarh, NeurIPS 2020) and oBERT (Kurtic et al., EMNLP 2022): ``F = damping * I + mean of g g^T`` over batches, g
    the gradient of a batch's mean loss, for independent blocks of consecutive weights of one output unit. The saliency
    is that of oBERT for one weight. ``reconstruct`` changes the weights of a block by the optimal update of both
    papers, ``-F^-1[:, Q] (F^-1[Q, Q])^-1 w_Q``, for the whole set Q dropped from the block. The update is therefore
    exact for any mask, however it was chosen.

    The papers update the inverse gradient by gradient. Here the sums of products are stored (8 bytes times ``block``
    for each weight) and solved at the end, so the order of batches does not matter. Weights of 0 count as dropped: they
    score 0, and the saliencies of the others are those of a network without them. The papers select single weights or
    small groups within a block; here the mask is chosen by the saliencies of single weights.
    """

    name: ClassVar[str] = "obs"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})
    scope: ClassVar[Scope] = "global"

    block: int = option(50, "consecutive weights of a unit that share one Fisher matrix", low=1)
    damping: float = option(1e-7, "number added to the diagonal of each Fisher matrix", low=1e-12)

    _products: Tensor | None = attrs.field(default=None, init=False)  # [blocks, size, size]
    _batches: int = attrs.field(default=0, init=False)

    def observe(self, seen: Observation) -> None:
        """Add the products of a batch's gradients."""
        gradient = batch_gradient(seen)
        if gradient is None:
            return
        blocks = self._cut(gradient)
        if self._products is None:
            self._products = blocks.new_zeros(*blocks.shape, blocks.shape[1])
        self._products.baddbmm_(blocks.unsqueeze(2), blocks.unsqueeze(1))
        self._batches += 1

    def _cut(self, matrix: Tensor) -> Tensor:
        """Split ``[G, out, fan]`` into blocks ``[blocks, size]``, the last one of each unit padded with zeros."""
        size = min(self.block, matrix.shape[2])
        return F.pad(matrix, (0, -matrix.shape[2] % size)).reshape(-1, size)

    def _joined(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Reshape blocks ``[blocks, size]`` back to ``[G, out, fan]``."""
        return blocks.reshape(*like.shape[:2], -1)[..., : like.shape[2]]

    def _fishers(self, there: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the Fisher matrices of some blocks at a time; rows and columns of absent weights are the identity's."""
        products = total(self._products, self.name, "gradients")
        size = products.shape[1]
        one = torch.eye(size, dtype=torch.float64, device=products.device)
        length = max(1, _BYTES // (8 * size**2))
        for start in range(0, len(products), length):
            part = slice(start, start + length)
            fisher = products[part] / self._batches + self.damping * one
            yield part, torch.where(there[part].unsqueeze(2) & there[part].unsqueeze(1), fisher, one)

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``w^2 / (2 [F^-1]_qq)``: float64 ``[G, out, fan]``.

        Raises:
            DataError: no gradient was observed.
        """
        weights = self._cut(weight.double())
        scores = torch.empty_like(weights)
        for part, fisher in self._fishers(weights != 0):
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(fisher))
            scores[part] = weights[part].square() / (2 * inverse.diagonal(dim1=1, dim2=2))
        return self._joined(scores, weight)

    def reconstruct(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the weight with the lowest loss, to second order, among all weights with this mask."""
        weights, kept = self._cut(weight.double()), self._cut(mask)
        repaired = torch.empty_like(weights)
        products = total(self._products, self.name, "gradients")
        for part, fisher in self._fishers(kept):
            # In terms of F instead of its inverse the step is F[K, K]^-1 F[K, Q] w_Q, one system for each block.
            pull = products[part] @ (weights[part] * ~kept[part]).unsqueeze(2) / self._batches
            step = torch.cholesky_solve(pull * kept[part].unsqueeze(2), torch.linalg.cholesky(fisher)).squeeze(2)
            repaired[part] = (weights[part] + step) * kept[part]
        return self._joined(repaired, weight).to(weight.dtype)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [BlockedObs]
