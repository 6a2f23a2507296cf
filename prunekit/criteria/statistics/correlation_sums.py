"""Correlation of a layer's outputs with its inputs, position by position, in one streaming pass.

Samples are buffered into blocks of their own size, independent of the batches. Each block is centred on its own means
and multiplied in a few large products, and the sums over blocks are kept in double precision. This module must not know
layers, criteria or models.
"""

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from prunekit.criteria.statistics.moments import Block, Moments
from prunekit.criteria.statistics.products import add_products, full_precision, runs, taken
from prunekit.distributed.ranks import gather_numbers, rank_count, sum_over_ranks
from prunekit.errors import DataError

# Most samples of a block: the sums in double precision are updated once for each block.
_BLOCK = 1024
# With at most this many samples in total, rounding would show ...
_FEW = 512
# ... so this many samples, the first ones, are processed in double precision throughout.
_EXACT = 128
# Bytes copied at once: the next feature of a position may be far away in an image, but is still in the cache.
_COPY_BYTES = 2**20
# Products are computed in parts of this many bytes, which are still in the cache when they are added to the sums.
_PART_BYTES = 2 * 2**20


@attrs.define(eq=False)
class _Side:
    """One side of the correlation: buffered samples ``[cells, block, features]``, and the moments of earlier ones."""

    waiting: Tensor
    moments: Moments

    @classmethod
    def start(cls, name: str, values: Tensor, block: int, dtype: torch.dtype) -> "_Side":
        cells, _, features = values.shape
        waiting = torch.empty(cells, block, features, dtype=dtype, device=values.device)
        return cls(waiting, Moments.start(name, waiting))

    def join(self, part: slice, before: int) -> Block:
        values = self.waiting[:, part]
        exact = before + values.shape[1] <= _EXACT
        return self.moments.join(values.double() if exact else values, before)


@attrs.define(eq=False)
class CorrelationSums:
    """The running correlation of each output with each input of a layer, at each position.

    >>> sums = CorrelationSums()
    >>> sums.update(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[5.0], [3.0], [1.0]]]))
    >>> round(sums.correlation().item(), 6)
    -1.0

    Inputs are cells, each with samples of some features; outputs are units, each with samples of some neurons. A
    unit sees one cell or, like a position of a convolution, several of them, which ``taps`` lists. An input that many
    positions see is therefore stored, centred and squared once.

    It takes the memory of float64 ``[taps, units, out, features]``, of the buffer, and of a second copy of the buffer's
    outputs, independent of the number of samples.

    The result equals that of a two-pass computation in double precision to 1e-7, for means up to 1e4 deviations, and
    does not depend on how the samples are split into batches.

    Attributes:
        taps: int64 ``[taps, units]``, the cells that each unit sees; ``None``: as many cells as units, each unit sees
            its own.
        buffer: bytes for buffered samples; 128 to 1,024 samples are processed at once, and more are faster.
        samples: number of samples observed.
    """

    taps: Tensor | None = None
    buffer: int = 2**28
    samples: int = attrs.field(default=0, init=False)
    _joined: int = attrs.field(default=0, init=False)  # samples that are in the sums, no longer in the buffer
    _inputs: _Side | None = attrs.field(default=None, init=False)
    _outputs: _Side | None = attrs.field(default=None, init=False)
    _products: Tensor | None = attrs.field(default=None, init=False)

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add one batch; the number of samples may differ from batch to batch, and may be 0.

        Args:
            inputs: ``[cells, samples, features]``, any floating type; processed in float32 or float64.
            outputs: ``[units, samples, out]``, likewise.

        Raises:
            DataError: the shapes do not match, or a value is NaN or infinite. The values are checked when a block is
                full; the sums are unusable afterwards.
        """
        samples = inputs.shape[1]
        units = len(inputs) if self.taps is None else self.taps.shape[1]
        if outputs.shape[:2] != (units, samples):
            raise DataError(
                f"inputs {tuple(inputs.shape)} and outputs {tuple(outputs.shape)} differ in positions or "
                "samples; pass the inputs and outputs of the same module at the same positions"
            )
        if samples == 0:
            return
        below, above = self._sides(inputs.detach(), outputs.detach())
        most = max(1, _COPY_BYTES // (below.itemsize * (below[:, 0].numel() + above[:, 0].numel())))
        used = 0
        while used < samples:
            at = self.samples - self._joined
            count = min(samples - used, below.shape[1] - at, most)
            below[:, at : at + count] = inputs[:, used : used + count]
            above[:, at : at + count] = outputs[:, used : used + count]
            used += count
            self.samples += count
            if at + count == below.shape[1]:
                self._join_waiting()

    def _sides(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two buffers; the first batch allocates them."""
        if self._inputs is None or self._outputs is None:
            dtype = torch.promote_types(torch.promote_types(inputs.dtype, outputs.dtype), torch.float32)
            sample = dtype.itemsize * (inputs[:, 0].numel() + outputs[:, 0].numel())
            block = min(max(self.buffer // sample, _EXACT), _BLOCK)
            self._inputs = _Side.start("inputs", inputs, block, dtype)
            self._outputs = _Side.start("outputs", outputs, block, dtype)
        buffers = self._inputs.waiting, self._outputs.waiting
        for buffer, values in zip(buffers, (inputs, outputs), strict=True):
            if buffer[:, 0].shape != values[:, 0].shape:
                raise DataError(
                    f"a batch has {tuple(values[:, 0].shape)} values per sample, but earlier batches had "
                    f"{tuple(buffer[:, 0].shape)}; use inputs of the same size in all batches"
                )
        return buffers

    def _join_waiting(self) -> None:
        """Add the buffered samples to the sums."""
        samples = self.samples - self._joined
        if samples == 0 or self._inputs is None or self._outputs is None:
            return
        few = self._joined == 0 and _EXACT < samples <= _FEW
        with full_precision(self._inputs.waiting.device):
            for part in (slice(_EXACT), slice(_EXACT, samples)) if few else (slice(samples),):
                self._join(self._inputs.join(part, self._joined), self._outputs.join(part, self._joined))

    def _join(self, below: Block, above: Block) -> None:
        if self._products is None:
            shape = (len(self._seen()), *above.rest.shape, below.rest.shape[1])
            self._products = torch.zeros(shape, dtype=torch.float64, device=below.centred.device)
        self._add_products(self._products, below, above)
        self._joined += below.centred.shape[1]

    def _add_products(self, products: Tensor, below: Block, above: Block) -> None:
        before, samples = self._joined, below.centred.shape[1]
        # Blocks are merged by Chan's update, of the difference of the means and of the residuals of centring.
        left = torch.stack([above.step * (before * samples / (before + samples)), above.rest / -samples], dim=2)
        right = torch.stack([below.step, below.rest], dim=1)
        cut = runs(before, samples, below.centred.dtype)
        outputs = [above.centred[:, run].transpose(1, 2).contiguous() for run in cut]
        scratch = below.centred.new_empty(self._largest_part(products))
        for tap, units, cells, features in self._parts(products):
            total = products[tap, units, :, features]
            total.baddbmm_(left[units], taken(right, cells)[..., features])
            if bool(below.still[cells].all()):
                continue  # mostly padding, which is all zeros once it is centred
            seen = taken(below.centred, cells)[..., features]
            add_products(total, [run[units] for run in outputs], seen, cut, scratch)

    def _seen(self) -> Tensor:
        """Return ``taps`` on the CPU."""
        if self.taps is not None:
            return self.taps.cpu()
        return torch.arange(0 if self._outputs is None else len(self._outputs.waiting)).unsqueeze(0)

    def _parts(self, products: Tensor) -> Iterator[tuple[int, slice, Tensor, slice]]:
        """Split the products into parts that fit the cache: (tap, units, the cells that they see, features)."""
        seen = self._seen()
        _, unit_count, out, feature_count = products.shape
        columns = max(1, _PART_BYTES // (4 * out))
        size = max(1, columns // feature_count)
        for start in range(0, unit_count, size):
            units = slice(start, start + size)
            for first in range(0, feature_count, columns):
                features = slice(first, first + columns)
                yield from ((tap, units, cells[units], features) for tap, cells in enumerate(seen))

    def _largest_part(self, products: Tensor) -> int:
        return max(products[tap, units, :, features].numel() for tap, units, _, features in self._parts(products))

    def join_ranks(self) -> None:
        """Merge the sums of all ranks of a distributed run, in place; every rank must call it exactly once.

        In a single process it does nothing. Ranks are merged like blocks, so the result is that of one process that
        observed all samples.

        Raises:
            DataError: on every rank, if a rank observed no sample, or inputs of a different size.
        """
        if rank_count() == 1:
            return
        self._join_waiting()
        shape = [0] * 4 if self._products is None else list(self._products.shape)
        everyone = gather_numbers([self.samples, *shape])
        for rank, numbers in enumerate(everyone):
            if numbers[0] == 0:
                raise DataError(f"rank {rank} observed no samples; give every rank at least one calibration batch")
            if numbers[1:] != everyone[0][1:]:
                raise DataError(
                    f"correlations have shape {numbers[1:]} on rank {rank}, but {everyone[0][1:]} on rank 0; "
                    "use inputs of the same size on all ranks"
                )
        if self._inputs is None or self._outputs is None or self._products is None:
            return  # impossible, because every rank observed samples
        before, total = self.samples, sum(samples for samples, *_ in everyone)
        input_scale, output_scale = self._inputs.moments.scale, self._outputs.moments.scale
        below = self._inputs.moments.join_ranks(before, total)
        above = self._outputs.moments.join_ranks(before, total) * before
        for tap, units, cells, features in self._parts(self._products):
            part = self._products[tap, units, :, features]
            part /= output_scale[units].unsqueeze(2)
            part /= taken(input_scale, cells)[:, features].unsqueeze(1)
            part.baddbmm_(above[units].unsqueeze(2), taken(below, cells)[:, features].unsqueeze(1))
        sum_over_ranks(self._products)
        self.samples = self._joined = total

    def correlation(self) -> Tensor:
        """Return the correlations so far, float64 ``[units, out, features * taps]`` in [-1, 1].

        The correlation is 0 if an input or an output never changed; it is never NaN.

        Raises:
            DataError: no sample was observed, or a buffered value is NaN or infinite.
        """
        return self._summed(1, absolute=False)

    def absolute_sum(self, positions: int) -> Tensor:
        """Return the sums of the absolute correlations over positions: equation (2) of the paper.

        Args:
            positions: number of consecutive units that form one group, over which the sum is taken.

        Returns:
            float64 ``[units / positions, out, features * taps]``.

        Raises:
            DataError: as ``correlation``.
        """
        return self._summed(positions, absolute=True)

    def _summed(self, positions: int, *, absolute: bool) -> Tensor:
        self._join_waiting()
        if self._inputs is None or self._outputs is None or self._products is None:
            raise DataError("there are no samples to correlate; provide at least one batch with samples")
        taps, units, out, features = self._products.shape
        result = self._products.new_zeros(taps, units // positions, out, features)
        above, below = self._outputs.moments.inverse_norm(), self._inputs.moments.inverse_norm()
        scratch = self._products.new_empty(self._largest_part(self._products))
        for tap, part, cells, some in self._parts(self._products):
            products = self._products[tap, part, :, some]
            found = torch.mul(products, above[part].unsqueeze(2), out=scratch[: products.numel()].view(products.shape))
            found.mul_(taken(below, cells)[:, some].unsqueeze(1))
            for number, coefficients in zip(range(*part.indices(units)), found, strict=True):
                result[tap, number // positions, :, some] += coefficients.abs_() if absolute else coefficients
        return result.clamp_(-positions, positions).permute(1, 2, 3, 0).flatten(2)
