"""Sums over batches for criteria, in double precision: gradients of weights, and inputs unfolded piece by piece.

This module must not know how criteria use the sums.
"""

from collections.abc import Iterator

from torch import Tensor

from prunekit.contracts.criterion import Observation
from prunekit.distributed.ranks import gather_numbers, rank_count, sum_over_ranks
from prunekit.errors import DataError
from prunekit.layers.view import LayerView

# Bytes of unfolded inputs in memory at once; a single position of a batch may take more.
_BYTES = 2**26


def batch_gradient(seen: Observation) -> Tensor | None:
    """Return the gradient of a batch's loss with respect to the weight, float64 ``[G, out, fan]``.

        def observe(self, seen):
            gradient = batch_gradient(seen)
            if gradient is not None:
                self._sum = add(self._sum, gradient)

    With several processes it is the gradient of the whole batch, the same on every rank, so it needs no ``join``.
    ``None`` if an earlier observation of this batch had it, or if the loss of the batch does not depend on the layer.

    Raises:
        DataError: the gradient is not finite, or the weight does not require a gradient.
    """
    if not seen.layer.weight.requires_grad:
        raise DataError("its weight does not require a gradient; call requires_grad_() on it, or exclude the layer")
    if seen.call > 0 or seen.weight_gradient is None:
        return None
    return finite(seen.weight_gradient, "gradients of the weight")


def position_slices(layer: LayerView, inputs: Tensor) -> Iterator[slice]:
    """Split the positions of a batch into slices whose unfolded inputs fit a fixed amount of memory."""
    positions = layer.positions(inputs)
    each = layer.inputs_at(inputs, slice(0, 1)).numel() * 8
    length = max(1, _BYTES // max(each, 1))
    for start in range(0, positions, length):
        yield slice(start, min(start + length, positions))


def unfolded(layer: LayerView, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of each weight in pieces, positions counting as samples: float64 ``[G, samples, fan]``.

    Raises:
        DataError: a value is NaN or infinite.
    """
    for positions in position_slices(layer, inputs):
        yield finite(layer.inputs_at(inputs, positions).flatten(1, 2), "inputs")


def finite(values: Tensor, what: str) -> Tensor:
    """Return the values in double precision.

    Args:
        values: any tensor of a layer.
        what: the name of the values in the message: "inputs".

    Raises:
        DataError: a value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise DataError(f"the {what} of a layer contain NaN or infinite values; check the data and the weights")
    return values.double()


def total(sums: Tensor | None, name: str, what: str) -> Tensor:
    """Return the sums of a criterion, or raise an error if nothing was summed.

    Args:
        sums: the sums; ``None``: no batch was observed.
        name: the criterion's name, for the message.
        what: the name of the summed values, for the message: "gradients".

    Raises:
        DataError: ``sums`` is ``None``.
    """
    if sums is None:
        raise DataError(f"criterion {name!r} observed no {what}; provide batches that reach the layer")
    return sums


def add(sums: Tensor | None, term: Tensor) -> Tensor:
    """Add a term to sums in place and return them; ``None`` is an empty sum."""
    return term if sums is None else sums.add_(term)


def join(sums: Tensor | None, samples: int = 0) -> tuple[Tensor | None, int]:
    """Return the sums and the number of samples of all ranks; a single process gets its arguments back.

        def end_pass(self):
            self._sum, self._samples = join(self._sum, self._samples)
            return False

    All ranks must call it, in the same order.

    Args:
        sums: the sums over this rank's samples; ``None``: it observed none.
        samples: the number of samples in them, if the criterion counts them.

    Raises:
        DataError: on every rank, if some ranks observed samples and others did not.
    """
    if rank_count() == 1:
        return sums, samples
    everyone = gather_numbers([sums is not None, samples])
    seen = [bool(there) for there, _ in everyone]
    if any(seen) and not all(seen):
        raise DataError(
            f"rank {seen.index(False)} observed no samples, but rank {seen.index(True)} did; give every rank at least "
            "one sample: use larger calibration batches or fewer ranks"
        )
    return (None if sums is None else sum_over_ranks(sums)), sum(count for _, count in everyone)
