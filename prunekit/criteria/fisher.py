"""The criterion "fisher": the second-order change of the loss, by the diagonal of the empirical Fisher matrix."""

from collections.abc import Iterable, Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.sums import add, batch_gradient, finite, join, position_slices, total
from prunekit.masks.selection import Scope

# Bytes of per-sample gradients in memory at once; those of a single sample may take more.
_BYTES = 2**26


@attrs.define(eq=False)
class Fisher(Criterion):
    """Keep weights by ``F * w^2 / 2``, F the diagonal of the empirical Fisher matrix (LeCun, Denker, Solla, 1989).

    This is the saliency of optimal brain damage with F in place of the diagonal of the Hessian (as in Theis et al.,
    2018). F is the mean over samples of the squared gradient of the sample's own loss. Gradients of samples are exact:
    summed over the positions (tokens) of a sample, then squared.

    A batch of n samples gives the gradient of its mean loss, which is the sum of its samples' gradients divided by n.
    Its squares are multiplied by n^2 and added over batches, and the sum is divided by the square of the number of all
    samples, so that batches of different sizes have the right weights. The result is F divided by the number of
    samples; this factor is the same for all layers and does not change the ranking. For a layer whose batch holds k
    pieces of each sample (windows of an image), k enters both factors, so the ranking across layers is still right.

    The samples of a batch are the first dimension of the module's input. If tokens come first (``batch_first=False``),
    the squares are those of the tokens at one place, summed over the batch. Several calls of one module within a batch
    count as separate samples.
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients"})
    scope: ClassVar[Scope] = "global"

    _squares: Tensor | None = attrs.field(default=None, init=False)
    _samples: int = attrs.field(default=0, init=False)

    def observe(self, seen: Observation) -> None:
        """Add the squared gradients of the samples of a batch."""
        batch_gradient(seen)  # raises an error without a finite gradient
        size = _batch_size(seen)
        if seen.output_gradient is None or size == 0:
            return
        whole = round(size / seen.share)  # samples of the whole batch, over which the loss is a mean
        for squares in _squared_gradients(seen, seen.output_gradient, size):
            self._squares = add(self._squares, squares.mul_(whole**2))
        self._samples += size if seen.call == 0 else 0

    def end_pass(self) -> bool:
        """Add up the sums of all ranks."""
        self._squares, self._samples = join(self._squares, self._samples)
        return False

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``F * w^2 / 2`` divided by the number of samples: float64 ``[G, out, fan]``.

        Raises:
            DataError: no gradient was observed.
        """
        return total(self._squares, self.name, "gradients") / self._samples**2 * weight.double().square() / 2


def _batch_size(seen: Observation) -> int:
    """Return the length of the first dimension, or the view's number of samples if a module takes unbatched input."""
    samples, first = seen.layer.inputs_at(seen.inputs, slice(0, 1)).shape[2], len(seen.inputs)
    return samples if first == 0 or samples % first else first


def _squared_gradients(seen: Observation, output_gradient: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the squared gradients of the weight by sample, summed over some samples: float64 ``[G, out, fan]``."""
    layer, batch = seen.layer, [(seen.inputs, output_gradient)]
    if size == len(seen.inputs):  # it can be split
        length = max(1, _BYTES // (8 * layer.weight.numel()))
        batch = list(zip(torch.split(seen.inputs, length), torch.split(output_gradient, length), strict=True))
    for inputs, deltas in batch:
        samples = len(inputs) if size == len(seen.inputs) else size
        gradients: Tensor | None = None
        for positions in position_slices(layer, inputs):
            x = _by_sample(finite(layer.inputs_at(inputs, positions), "inputs"), samples)
            delta = _by_sample(finite(layer.outputs_at(deltas, positions), "output gradients"), samples)
            if layer.positions(inputs) == x.shape[2] == 1:
                # The square of an outer product is the outer product of the squares: one product for all samples.
                yield delta.square_().squeeze(2).mT @ x.square_().squeeze(2)
            else:
                gradients = add(gradients, delta.mT @ x)
        if gradients is not None:
            yield gradients.square_().sum(1)


def _by_sample(values: Tensor, samples: int) -> Tensor:
    """Reshape ``[G, m, samples * tokens, features]`` to ``[G, samples, m * tokens, features]``."""
    groups, positions, _, features = values.shape
    return values.reshape(groups, positions, samples, -1, features).transpose(1, 2).flatten(2, 3)


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Return this module's criterion."""
    return [Fisher]
