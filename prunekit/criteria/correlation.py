"""The criterion "correlation": neurons that fire together keep their connection.

Sun, Wang, Tang, "Sparsifying Neural Network Connections for Face Recognition", CVPR 2016. This module must not know
layer types, tasks or where batches come from.
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

# Share of the memory for sums; the rest buffers samples that are processed together.
_SUMS = 0.75


@attrs.define(eq=False)
class Correlation(Criterion):
    """Keep connections by the correlation of the two neurons they connect (Sun, Wang, Tang, CVPR 2016).

    With one position (linear and locally connected layers) the score is ``|r|`` of equation (1); with M
    positions that share weights (convolutions) it is the sum over the positions of ``|r|``, equation (2).

    Mode "halves" is the paper's selection, for each output unit: sort the K+ positive coefficients of
    equation (1), split the list into two halves, and keep, at random, ``strength * S * K+`` of the stronger half and
    ``(1 - strength) * S * K+`` of the other, where S is the density. The K- negative coefficients are selected in the
    same way, by magnitude. Equation (2) is never negative, so it gives one list.

    Where the paper is silent:

    - the output neuron is taken after its activation function, or before it with ``pre_activation``;
    - a correlation with a neuron that never changes (such as padding) is 0; zeros belong to neither sign and are
      kept, at random, only if all other connections are kept;
    - in a list of odd length the stronger half has one connection more;
    - shares are rounded at random, so that they are exact on average, and each unit's count is exact;
    - if one half has too few connections, the other half supplies the rest.
    """

    name: ClassVar[str] = "correlation"
    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})
    scope: ClassVar[Scope] = "unit"

    strength: float = option(0.75, "share of the kept connections from the stronger half (lambda)", low=0, high=1)
    mode: str = option(
        "halves", "how to choose: the paper's random draw, or a control", choices=("halves", "highest", "random")
    )
    pre_activation: bool = option(False, "correlate the output before its activation function")
    memory: float = option(2.0, "GiB for sums; a layer that needs more takes several passes over the data", low=0)
    positions: int = option(0, "positions of a convolution to sample; 0: all of them", low=0)

    _positions: int = attrs.field(default=0, init=False)
    _left: Tensor | None = attrs.field(default=None, init=False)  # positions of this pass and the later ones
    _pass: Tensor = attrs.field(factory=lambda: torch.arange(0), init=False)  # positions of this pass
    _sums: CorrelationSums | None = attrs.field(default=None, init=False)
    _total: Tensor | None = attrs.field(default=None, init=False)

    def check(self, scope: Scope, pattern: Pattern | None) -> None:
        """Refuse meaningless scopes and patterns: halves belong to one unit, and a random draw fits no pattern."""
        if self.mode == "halves" and pattern is not None:
            raise ConfigError(
                f"criterion 'correlation' with mode='halves' cannot keep the pattern {pattern}; "
                "use criterion.mode='highest'"
            )
        if self.mode == "halves" and scope != "unit":
            raise ConfigError(
                f"criterion 'correlation' with mode='halves' selects per output unit and does not support "
                f"scope={scope!r}; use scope='unit' or criterion.mode='highest'"
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
                f"the activations of a layer have shape {tuple(outputs.shape)}, but its outputs have shape "
                f"{tuple(seen.outputs.shape)}; in Task.activations, name a module before any pooling, or set "
                "criterion.pre_activation=true"
            )
        positions = layer.positions(seen.inputs)
        if self._positions not in {0, positions}:
            raise DataError(
                f"a layer has {positions} positions in one batch and {self._positions} in another; "
                "correlations need inputs of the same size in all batches"
            )
        self._positions = positions
        if self._sums is None:
            self._sums = self._begin(layer, seen.inputs)
        self._sums.update(layer.cells(seen.inputs, self._pass), layer.units(outputs, self._pass))

    def _begin(self, layer: LayerView, inputs: Tensor) -> CorrelationSums:
        """Choose the positions of this pass, as many as fit the memory, and start their sums."""
        if self._left is None:
            self._left = self._drawn()
        bytes_left = self.memory * 2**30
        fitting = max(1, int(bytes_left * _SUMS) // (8 * layer.groups * layer.outputs * layer.fan))
        passes_left = -(-len(self._left) // fitting)
        self._pass = self._left[: -(-len(self._left) // passes_left)]
        return CorrelationSums(layer.taps(inputs, self._pass), buffer=int(bytes_left * (1 - _SUMS)))

    def _drawn(self) -> Tensor:
        """Return the positions to observe, ascending: all of them, or the same random sample every time."""
        if not 0 < self.positions < self._positions:
            return torch.arange(self._positions)
        return torch.randperm(self._positions, generator=torch.Generator().manual_seed(0))[: self.positions].sort()[0]

    def end_pass(self) -> bool:
        """Add up the finished positions over all ranks; return whether positions remain for another pass."""
        sums = self._sums or CorrelationSums()
        sums.join_ranks()
        if self._sums is None or self._left is None:
            # No batch was observed: the remaining positions still remain.
            return self._left is not None and len(self._left) > 0
        if self._positions > 1:
            # An estimate of the sum over all positions if only some are observed.
            total = sums.absolute_sum(len(self._pass)) * (self._positions / len(self._drawn()))
        else:
            total = sums.correlation()
        self._total = total if self._total is None else self._total.add_(total)
        self._left, self._sums = self._left[len(self._pass) :], None
        return len(self._left) > 0

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``|r|``, or its sum over the positions: float32 ``[G, out, fan]``.

        Raises:
            DataError: no batch was observed.
        """
        return self._summed().abs().float().to(weight.device)

    def _summed(self) -> Tensor:
        if self._total is None:
            raise DataError("criterion 'correlation' observed no data; provide calibration batches")
        return self._total

    def select(self, scores: Tensor, quota: Quota, generator: torch.Generator) -> Tensor:
        """Return the mask, bool ``[G, out, fan]``.

        Raises:
            ConfigError: mode "halves" with a scope other than "unit", or with a pattern.
            MaskError: a unit has fewer connections left than it must keep.
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


# The lists into which the connections of a unit are divided; those in the last one cannot be kept.
_STRONG_POSITIVE, _WEAK_POSITIVE, _STRONG_NEGATIVE, _WEAK_NEGATIVE, _ZERO, _EXCLUDED = range(6)
_LISTS = 6
# The number of a list and 28 random bits form one 31-bit key; sorting by it puts every list in random order.
_RANDOM_BITS = 28


def keep_halves(
    coefficients: Tensor, counts: Tensor, strength: float, candidates: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Draw each unit's connections from the halves of its positive and its negative coefficients.

    Args:
        coefficients: float32 ``[units, fan]``, signed.
        counts: int64 ``[units]``, the number of connections that each unit keeps.
        strength: lambda, the share of the stronger halves.
        candidates: bool ``[units, fan]``, the connections that may be kept; ``None``: all.
        generator: a CPU generator; equal generators give equal masks.

    Returns:
        bool ``[units, fan]``, exactly ``counts[u]`` True in row u.

    Raises:
        MaskError: a unit has fewer candidates than it must keep.
    """
    device = coefficients.device
    # The bits of non-negative numbers sort like the numbers themselves, and integers sort faster.
    order = coefficients.abs().view(torch.int32).argsort(dim=1, descending=True, stable=True)
    lists = _lists(coefficients.gather(1, order), None if candidates is None else candidates.gather(1, order))
    sizes = torch.stack([(lists == number).sum(1) for number in range(_LISTS)], dim=1)
    short = counts > sizes[:, :_EXCLUDED].sum(1)
    if bool(short.any()):
        unit = int(short.nonzero()[0])
        raise MaskError(
            f"output unit {unit} must keep {int(counts[unit])} connections but has only "
            f"{int(sizes[unit, :_EXCLUDED].sum())} left; lower the density or use scope='layer'"
        )
    shares = _shares(sizes, counts, strength, torch.rand(len(counts), 3, generator=generator, dtype=torch.float64))
    drawn = torch.randint(2**_RANDOM_BITS, lists.shape, generator=generator, dtype=torch.int32).to(device)
    keys, place = (drawn + (lists << _RANDOM_BITS)).sort(dim=1, stable=True)
    ends = sizes.cumsum(1) - sizes + shares
    kept = torch.arange(keys.shape[1], device=device) < ends.gather(1, (keys >> _RANDOM_BITS).long())
    return torch.zeros_like(kept).scatter_(1, order.gather(1, place), kept)


def _lists(ranked: Tensor, candidates: Tensor | None) -> Tensor:
    """Return the number of each coefficient's list, int32; rows must be sorted by magnitude, strongest first."""
    lists = torch.full(ranked.shape, _ZERO, dtype=torch.int32, device=ranked.device)
    excluded = torch.zeros_like(ranked, dtype=torch.bool) if candidates is None else ~candidates
    for members, first in ((ranked > 0, _STRONG_POSITIVE), (ranked < 0, _STRONG_NEGATIVE)):
        members &= ~excluded  # noqa: PLW2901 - in place, into the tensor just made
        rank = members.cumsum(1, dtype=torch.int32)
        weak = rank > (rank[:, -1:] + 1) // 2
        lists = torch.where(members, first + weak.to(torch.int32), lists)
    return lists.masked_fill_(excluded, _EXCLUDED)


def _shares(sizes: Tensor, counts: Tensor, strength: float, draws: Tensor) -> Tensor:
    """Return the number of connections to keep from each list, int64 ``[units, lists]``; rows sum to ``counts``."""
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
        # At most the size of the stronger half, and at least the part that the other half cannot supply.
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
    """Return this module's criterion."""
    return [Correlation]
