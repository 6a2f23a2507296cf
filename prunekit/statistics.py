"""Correlation of a layer's outputs with its inputs, position by position, in one streaming pass.

Every batch is centred on its own means, multiplied out in single precision, and joined to the sums so far
in double precision, so that neither a large mean nor a long data set costs digits. This module must
not know layers, criteria or models: it sees two tensors per batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from prunekit.errors import DataError

# Products are added up in blocks of this many bytes: they stay in cache, and small blocks are reused memory.
_BLOCK_BYTES = 8 * 2**20
# Samples summed in single precision before double precision takes over: keeps the error near 1e-7.
_RUN = 32
# Powers of two beyond this do not fit a single-precision number together with their inverse.
_LARGEST_EXPONENT = 120


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Switch off TF32 and autocast: their 8 to 11 bits would be all that is left of a correlation."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@attrs.frozen(eq=False)
class _Batch:
    """One batch of one side, in units of the column's ``unit``; sums are float64 ``[G, m, features]``."""

    centred: Tensor  # [G, m, samples, features]
    rest: Tensor  # sum of the centred values: what rounding of the centre left over
    step: Tensor  # this batch's mean - the mean before


@attrs.define(eq=False)
class _Moments:
    """Mean and summed squared deviations of every column of one side, float64 ``[G, m, features]``.

    Deviations are counted in ``unit``, a power of two near the largest one of the first batch that has any:
    dividing by it is exact and keeps squares and products of very small and very large numbers in range.
    """

    mean: Tensor
    squares: Tensor
    unit: Tensor

    @classmethod
    def start(cls, values: Tensor) -> "_Moments":
        unit = torch.ones_like(values[:, :, 0])
        return cls(torch.zeros_like(unit, dtype=torch.float64), torch.zeros_like(unit, dtype=torch.float64), unit)

    def join(self, values: Tensor, before: int) -> _Batch:
        """Join a batch to the ``before`` samples seen so far: the pairwise update of Chan, Golub, LeVeque (1983)."""
        samples = values.shape[2]
        after = before + samples
        centre = _centre(values)
        centred = values - centre.unsqueeze(2)
        self._choose_units(centred.abs().amax(2), (centre - self.mean).abs() if before else None)
        centred /= self.unit.unsqueeze(2)
        rest = centred.sum(2).double()
        step = (centre.double() - self.mean) / self.unit + rest / samples
        squares = -rest.square() / samples
        for run in torch.split(centred, _RUN, dim=2):
            squares += run.square().sum(2)
        self.squares += squares.clamp_(min=0) + step.square() * (before * samples / after)
        self.mean += step * self.unit * (samples / after)
        return _Batch(centred, rest, step)

    def _choose_units(self, deviation: Tensor, step: Tensor | None) -> None:
        """Choose the units of columns that never changed before: all their sums are still zero."""
        if step is not None:
            deviation = deviation.maximum(step.to(deviation.dtype))
        exponent = torch.frexp(deviation).exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        unit = torch.ldexp(torch.ones_like(deviation), exponent)
        self.unit = torch.where(self.squares == 0, unit, self.unit)

    def inverse_norm(self) -> Tensor:
        """Return 1 / sqrt(summed squares), and 0 for a column that never changed."""
        return torch.where(self.squares > 0, self.squares.rsqrt(), 0.0)


def _centre(values: Tensor) -> Tensor:
    """Return the mean of each column over its samples; of a constant column, exactly the constant."""
    return values.mean(2).clamp(values.amin(2), values.amax(2))


@attrs.define(eq=False)
class CorrelationSums:
    """The running correlation of each output with each input of a layer, at each position.

    Its memory is that of one float64 ``[G, m, out, fan]``, whatever the number of batches. The result is that of a
    two-pass computation in double precision to about 1e-7, for means up to 1e4 deviations.

    >>> sums = CorrelationSums()
    >>> sums.update(torch.tensor([[[[1.0], [2.0], [3.0]]]]), torch.tensor([[[[5.0], [3.0], [1.0]]]]))
    >>> round(sums.correlation().item(), 6)
    -1.0
    """

    samples: int = attrs.field(default=0, init=False)
    _inputs: _Moments | None = attrs.field(default=None, init=False)
    _outputs: _Moments | None = attrs.field(default=None, init=False)
    _products: Tensor | None = attrs.field(default=None, init=False)

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Take in one batch; the number of samples may differ from batch to batch, and may be 0.

        Args:
            inputs: ``[G, m, samples, fan]``, any floating type; worked on in float32 at least.
            outputs: ``[G, m, samples, out]``, likewise.

        Raises:
            DataError: when the shapes do not belong together, or a value is infinite or not a number. The
                sums are of no use after that.
        """
        groups, positions, samples, fan = inputs.shape
        if inputs.shape[:3] != outputs.shape[:3]:
            raise DataError(
                f"inputs {tuple(inputs.shape)} and outputs {tuple(outputs.shape)} differ in groups, positions or "
                "samples; correlations need the outputs of the same module at the same positions"
            )
        if samples == 0:
            return
        shape = (groups, positions, outputs.shape[3], fan)
        dtype = torch.promote_types(torch.promote_types(inputs.dtype, outputs.dtype), torch.float32)
        with _full_precision(inputs.device):
            inputs, outputs = inputs.detach().to(dtype), outputs.detach().to(dtype)
            if self._inputs is None or self._outputs is None or self._products is None:
                self._inputs, self._outputs = _Moments.start(inputs), _Moments.start(outputs)
                self._products = torch.zeros(shape, dtype=torch.float64, device=inputs.device)
            elif self._products.shape != shape:
                raise DataError(
                    f"a batch gives correlations of shape {shape} after batches of "
                    f"{tuple(self._products.shape)}; give all batches inputs of one size"
                )
            below = self._inputs.join(inputs, self.samples)
            above = self._outputs.join(outputs, self.samples)
            _check_finite("inputs", inputs, self._inputs)
            _check_finite("outputs", outputs, self._outputs)
            _add_products(self._products, below, above, self.samples)
        self.samples += samples

    def correlation(self) -> Tensor:
        """Return the correlations so far, float64 ``[G, m, out, fan]`` in [-1, 1].

        Where an input or an output never changed the correlation is 0; it is never NaN.

        Raises:
            DataError: when no sample was seen.
        """
        if self._inputs is None or self._outputs is None or self._products is None:
            raise DataError("correlations of no samples; give at least one batch with samples")
        result = self._products * self._outputs.inverse_norm().unsqueeze(3)
        return result.mul_(self._inputs.inverse_norm().unsqueeze(2)).clamp_(-1, 1)


def _check_finite(side: str, values: Tensor, moments: _Moments) -> None:
    # One infinite or undefined value spoils its column's squares: far fewer numbers to look at.
    if bool(moments.squares.isfinite().all()):
        return
    count = int((~values.isfinite()).sum())
    found = f"{count} of {values.numel()} values that are not finite" if count else "values too large to square"
    raise DataError(f"the {side} of a layer hold {found}; check the data and the weights of the model")


def _add_products(products: Tensor, below: _Batch, above: _Batch, before: int) -> None:
    """Add a batch's sums of products of deviations to ``products``, float64 ``[G, m, out, fan]``."""
    samples = below.centred.shape[2]
    weight = before * samples / (before + samples)
    left = torch.stack([above.step * weight, above.rest / -samples], dim=3).flatten(0, 1)
    right = torch.stack([below.step, below.rest], dim=2).flatten(0, 1)
    inputs, outputs = below.centred.flatten(0, 1), above.centred.flatten(0, 1).transpose(1, 2)
    rows = max(1, _BLOCK_BYTES // (8 * products.shape[2] * products.shape[3]))
    blocks = (torch.split(tensor, rows) for tensor in (products.flatten(0, 1), outputs, inputs, left, right))
    for total, output, input_, step, other in zip(*blocks, strict=True):
        total.baddbmm_(step, other)
        for run in zip(torch.split(output, _RUN, dim=2), torch.split(input_, _RUN, dim=1), strict=True):
            total.add_(torch.bmm(*run).double())
