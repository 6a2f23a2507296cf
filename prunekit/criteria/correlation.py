"""The criterion "correlation": connected neurons that fire together keep their connection.

Sun, Wang, Tang, "Sparsifying Neural Network Connections for Face Recognition", CVPR 2016. This module
must not know layer types, tasks or how batches are shown.
"""

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from prunekit.contracts.criterion import Criterion, Need, Observation
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.criteria.statistics.correlation_sums import CorrelationSums
from prunekit.errors import ConfigError, DataError, MaskError
from prunekit.layers.view import LayerView
from prunekit.masks.selection import Channels, Pattern, Quota, Scope, keep_best, unit_shares

# Of the memory, the part for sums; the rest is for samples that wait to be worked on together.
_SUMS = 0.75


@attrs.define(eq=False)
class Correlation(Criterion):
    """Keep connections by the correlation of the two neurons they connect (Sun, Wang, Tang, CVPR 2016).

    With one position (linear and locally connected layers) the score is ``|r|`` of equation (1); with M
    positions that share weights (convolutions) it is the sum over the positions of ``|r|``, equation (2).

    Mode "halves" is the paper's selection, for each output unit: sort the K+ positive coefficients of
    equation (1), cut the list in two halves, and keep, at random, ``strength * S * K+`` of the stronger half and
    ``(1 - strength) * S * K+`` of the other (S the density); the same for the K- negative ones by magnitude.
    Equation (2) is never negative: one list.

    Where the paper is silent:

    - the output neuron is taken after its activation function; ``pre_activation`` takes it before;
    - a correlation with a neuron that never changes (padding, too) is 0; zeros belong to neither sign and are
      kept, at random, only when everything else is;
    - of an odd number the stronger half has the greater part;
    - shares are rounded at random, so that they are exact on average, and each unit's count is exact;
    - what a half cannot supply the other half gives.
    """

    name: ClassVar[str] = "correlation"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})
    scope: ClassVar[Scope] = "unit"

    strength: float = option(0.75, "share of the kept connections from the stronger half (lambda)", low=0, high=1)
    mode: str = option(
        "halves", "which connections stay: the paper's draw, or its controls", choices=("halves", "highest", "random")
    )
    pre_activation: bool = option(False, "correlate the output before its activation function")
    memory: float = option(2.0, "GiB for sums; what needs more is done in several passes over the data", low=0)
    positions: int = option(0, "how many positions of a convolution to draw and look at; 0: all of them", low=0)

    _positions: int = attrs.field(default=0, init=False)
    _left: Tensor | None = attrs.field(default=None, init=False)  # positions of this pass and those to come
    _pass: Tensor = attrs.field(factory=lambda: torch.arange(0), init=False)  # positions of this pass
    _sums: CorrelationSums | None = attrs.field(default=None, init=False)
    _total: Tensor | None = attrs.field(default=None, init=False)

    def check(self, scope: Scope, pattern: Pattern | None) -> None:
        """Refuse what has no meaning: halves are those of one unit, and no pattern fits a draw."""
        if self.mode == "halves" and pattern is not None:
            raise ConfigError(
                f"criterion 'correlation' with mode='halves' cannot keep the pattern {pattern}; "
                "use criterion.mode='highest'"
            )
        if self.mode == "halves" and scope != "unit":
            raise ConfigError(
                f"criterion 'correlation' with mode='halves' selects per output unit, not with scope={scope!r}; "
                "use scope='unit' or criterion.mode='highest'"
            )
        if self.mode == "random" and (scope == "global" or isinstance(pattern, Channels)):
            together = "pattern 'channels'" if isinstance(pattern, Channels) else "scope='global'"
            raise ConfigError(
                f"criterion 'correlation' with mode='random' draws layer by layer, not with {together}; "
                "use scope='layer' or criterion 'random'"
            )

    def observe(self, seen: Observation) -> None:
        """Add a batch to the sums of the positions of this pass."""
        layer = seen.layer
        outputs = seen.outputs if self.pre_activation else seen.activations
        if outputs.shape != seen.outputs.shape:
            raise ConfigError(
                f"activations {tuple(outputs.shape)} of a layer have another shape than its outputs "
                f"{tuple(seen.outputs.shape)}; name a module before any pooling, or use criterion.pre_activation=true"
            )
        positions = layer.positions(seen.inputs)
        if self._positions not in {0, positions}:
            raise DataError(
                f"a layer has {positions} positions in one batch and {self._positions} in another; "
                "correlations by position need inputs of one size"
            )
        self._positions = positions
        if self._sums is None:
            self._sums = self._begin(layer, seen.inputs)
        self._sums.update(layer.cells(seen.inputs, self._pass), layer.units(outputs, self._pass))

    def _begin(self, layer: LayerView, inputs: Tensor) -> CorrelationSums:
        """Choose the positions of this pass, as many as the memory has room for, and start their sums."""
        if self._left is None:
            self._left = self._drawn()
        bytes_left = self.memory * 2**30
        fitting = max(1, int(bytes_left * _SUMS) // (8 * layer.groups * layer.outputs * layer.fan))
        passes_left = -(-len(self._left) // fitting)
        self._pass = self._left[: -(-len(self._left) // passes_left)]
        return CorrelationSums(layer.taps(inputs, self._pass), buffer=int(bytes_left * (1 - _SUMS)))

    def _drawn(self) -> Tensor:
        """Return the positions to look at, ascending: all, or the same draw every time."""
        if not 0 < self.positions < self._positions:
            return torch.arange(self._positions)
        return torch.randperm(self._positions, generator=torch.Generator().manual_seed(0))[: self.positions].sort()[0]

    def end_pass(self) -> bool:
        """Add up the finished positions, of all ranks of a distributed run; more data is wanted until all are done."""
        sums = self._sums or CorrelationSums()
        sums.join_ranks()
        if self._sums is None or self._left is None:
            # No batch was shown: what is left stays so.
            return self._left is not None and len(self._left) > 0
        if self._positions > 1:
            # An estimate of the sum over all positions, where only some are looked at.
            total = sums.absolute_sum(len(self._pass)) * (self._positions / len(self._drawn()))
        else:
            total = sums.correlation()
        self._total = total if self._total is None else self._total.add_(total)
        self._left, self._sums = self._left[len(self._pass) :], None
        return len(self._left) > 0

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``|r|``, or its sum over the positions: float32 ``[G, out, fan]``.

        Raises:
            DataError: when no batch was shown.
        """
        return self._summed().abs().float().to(weight.device)

    def _summed(self) -> Tensor:
        if self._total is None:
            raise DataError("criterion 'correlation' was shown no data; give it calibration batches")
        return self._total

    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        """Return the mask, bool ``[G, out, fan]``.

        Raises:
            ConfigError: mode "halves" with another scope than "unit", or with a pattern.
            MaskError: when a unit has fewer connections left than are to be kept.
        """
        self.check(quota.scope, quota.pattern)
        if self.mode == "highest":
            return keep_best(scores, quota)
        if self.mode == "random":
            return keep_best(torch.rand(scores.shape, generator=generator).to(scores.device), quota)
        signed = torch.copysign(scores, self._summed().to(scores.device)).float().flatten(0, 1)
        counts = unit_shares(quota, *signed.shape).to(scores.device)
        candidates = None if quota.candidates is None else quota.candidates.flatten(0, 1)
        return keep_halves(signed, counts, self.strength, candidates, generator).reshape(scores.shape)


# The lists that a unit's connections fall into; what is in the last one cannot be kept.
_STRONG_POSITIVE, _WEAK_POSITIVE, _STRONG_NEGATIVE, _WEAK_NEGATIVE, _ZERO, _GONE = range(6)
_LISTS = 6
# A list's number and 28 random bits make one 31-bit key: sorted by it, every list is in random order.
_RANDOM_BITS = 28


def keep_halves(
    coefficients: Tensor, counts: Tensor, strength: float, candidates: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Draw each unit's connections from the halves of its positive and its negative coefficients.

    Args:
        coefficients: float32 ``[units, fan]``, signed.
        counts: int64 ``[units]``, how many connections each unit keeps.
        strength: lambda, the share of the stronger halves.
        candidates: bool ``[units, fan]``, what may be kept; ``None``: all.
        generator: a CPU generator; equal ones give equal masks.

    Returns:
        bool ``[units, fan]``, exactly ``counts[u]`` True in row u.

    Raises:
        MaskError: when a unit has fewer candidates than it is to keep.
    """
    device = coefficients.device
    # Of numbers that are not negative the bits sort as the numbers do, and integers sort faster.
    order = coefficients.abs().view(torch.int32).argsort(dim=1, descending=True, stable=True)
    lists = _lists(coefficients.gather(1, order), None if candidates is None else candidates.gather(1, order))
    sizes = torch.stack([(lists == number).sum(1) for number in range(_LISTS)], dim=1)
    short = counts > sizes[:, :_GONE].sum(1)
    if bool(short.any()):
        unit = int(short.nonzero()[0])
        raise MaskError(
            f"output unit {unit} is to keep {int(counts[unit])} connections but has {int(sizes[unit, :_GONE].sum())} "
            "left; ask for a lower density or let the whole layer compete (scope='layer')"
        )
    shares = _shares(sizes, counts, strength, torch.rand(len(counts), 3, generator=generator, dtype=torch.float64))
    drawn = torch.randint(2**_RANDOM_BITS, lists.shape, generator=generator, dtype=torch.int32).to(device)
    keys, place = (drawn + (lists << _RANDOM_BITS)).sort(dim=1, stable=True)
    ends = sizes.cumsum(1) - sizes + shares
    kept = torch.arange(keys.shape[1], device=device) < ends.gather(1, (keys >> _RANDOM_BITS).long())
    return torch.zeros_like(kept).scatter_(1, order.gather(1, place), kept)


def _lists(ranked: Tensor, candidates: Tensor | None) -> Tensor:
    """Return the list that each coefficient belongs to, int32; rows are sorted by magnitude, strongest first."""
    lists = torch.full(ranked.shape, _ZERO, dtype=torch.int32, device=ranked.device)
    gone = torch.zeros_like(ranked, dtype=torch.bool) if candidates is None else ~candidates
    for members, first in ((ranked > 0, _STRONG_POSITIVE), (ranked < 0, _STRONG_NEGATIVE)):
        members &= ~gone  # noqa: PLW2901 - in place, into the tensor just made
        rank = members.cumsum(1, dtype=torch.int32)
        weak = rank > (rank[:, -1:] + 1) // 2
        lists = torch.where(members, first + weak.to(torch.int32), lists)
    return lists.masked_fill_(gone, _GONE)


def _shares(sizes: Tensor, counts: Tensor, strength: float, draws: Tensor) -> Tensor:
    """Return how many of each list to keep, int64 ``[units, lists]``; rows add up to ``counts``."""
    draws = draws.to(sizes.device)
    positive = sizes[:, _STRONG_POSITIVE] + sizes[:, _WEAK_POSITIVE]
    negative = sizes[:, _STRONG_NEGATIVE] + sizes[:, _WEAK_NEGATIVE]
    nonzero = counts.minimum(positive + negative)
    exact = nonzero * positive / (positive + negative).clamp(min=1).double()
    of_positive = _rounded(exact, draws[:, 0]).minimum(positive).maximum(nonzero - negative)
    shares = torch.zeros_like(sizes)
    for strong, wanted, draw in (
        (_STRONG_POSITIVE, of_positive, draws[:, 1]),
        (_STRONG_NEGATIVE, nonzero - of_positive, draws[:, 2]),
    ):
        first, second = sizes[:, strong], sizes[:, strong + 1]
        # Not more than the stronger half has, not less than the other one leaves over.
        shares[:, strong] = _rounded(strength * wanted, draw).minimum(first).maximum(wanted - second)
        shares[:, strong + 1] = wanted - shares[:, strong]
    shares[:, _ZERO] = counts - nonzero
    return shares


def _rounded(exact: Tensor, draw: Tensor) -> Tensor:
    """Round up or down at random so that the mean is exact; ``draw`` is uniform in [0, 1)."""
    whole = exact.double().floor()
    return whole.long() + (draw < exact - whole).long()


@hookimpl
def prunekit_criteria() -> Iterable[type[Criterion]]:
    """Bring the criterion."""
    return [Correlation]
