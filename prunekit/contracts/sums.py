"""What criteria sum over batches: gradients of weights, and inputs unfolded piece by piece, in double precision.

It must not know what the sums are for.
"""

from collections.abc import Iterator

from torch import Tensor

from prunekit.contracts.criterion import Observation
from prunekit.distributed.ranks import gather_numbers, rank_count, sum_over_ranks
from prunekit.errors import DataError
from prunekit.layers.view import LayerView

# Of unfolded inputs, as many bytes are in memory at once, or one position of the batch where that has more.
_BYTES = 2**26


def batch_gradient(seen: Observation) -> Tensor | None:
    """Return the gradient of a batch's loss with respect to the weight, float64 ``[G, out, fan]``.

    With several processes it is that of the whole batch, the same on every rank: there is nothing to ``join``.

    ``None`` where it has been given in another observation of this batch, or where the loss of the batch does not
    depend on the layer.

    Raises:
        DataError: when it is not finite, or when the weight takes no gradient.
    """
    if not seen.layer.weight.requires_grad:
        raise DataError("its weight takes no gradient; call requires_grad_() on it, or leave the layer out")
    if seen.call > 0 or seen.weight_gradient is None:
        return None
    return finite(seen.weight_gradient, "gradients of the weight")


def position_slices(layer: LayerView, inputs: Tensor) -> Iterator[slice]:
    """Cut the positions of a batch into stretches whose unfolded inputs are small."""
    positions = layer.positions(inputs)
    each = layer.inputs_at(inputs, slice(0, 1)).numel() * 8
    length = max(1, _BYTES // max(each, 1))
    for start in range(0, positions, length):
        yield slice(start, min(start + length, positions))


def unfolded(layer: LayerView, inputs: Tensor) -> Iterator[Tensor]:
    """Yield what comes into the weights, positions counting as samples: float64 ``[G, samples, fan]``, in pieces.

    Raises:
        DataError: when a value is infinite or not a number.
    """
    for positions in position_slices(layer, inputs):
        yield finite(layer.inputs_at(inputs, positions).flatten(1, 2), "inputs")


def finite(values: Tensor, what: str) -> Tensor:
    """Return the values in double precision.

    Raises:
        DataError: when one is infinite or not a number.
    """
    if not bool(values.isfinite().all()):
        raise DataError(f"the {what} of a layer hold values that are not finite; check the data and the weights")
    return values.double()


def total(sums: Tensor | None, name: str, what: str) -> Tensor:
    """Return the sums of a criterion, ``what`` having been summed.

    Raises:
        DataError: when there was nothing to sum.
    """
    if sums is None:
        raise DataError(f"criterion {name!r} was shown no {what}; give it batches that reach the layer")
    return sums


def add(sums: Tensor | None, term: Tensor) -> Tensor:
    """Add a term, in place, to sums that may not have begun."""
    return term if sums is None else sums.add_(term)


def join(sums: Tensor | None, samples: int = 0) -> tuple[Tensor | None, int]:
    """Return the sums over all ranks, and the number of samples of all; with one process, what was given.

    For ``Criterion.end_pass``: all ranks must call it, for the same sums.

    Args:
        sums: over what this rank has seen; ``None``: it saw nothing.
        samples: how much that was, where it counts.

    Raises:
        DataError: on every rank, when some ranks saw something and others did not.
    """
    if rank_count() == 1:
        return sums, samples
    everyone = gather_numbers([sums is not None, samples])
    seen = [bool(there) for there, _ in everyone]
    if any(seen) and not all(seen):
        raise DataError(
            f"rank {seen.index(False)} saw nothing of what rank {seen.index(True)} has sums of; give every rank at "
            "least one sample: larger calibration batches, or fewer ranks"
        )
    return (None if sums is None else sum_over_ranks(sums)), sum(count for _, count in everyone)
