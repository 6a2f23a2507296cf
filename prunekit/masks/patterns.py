"""Patterns of masks, which say what is kept or dropped together: N:M, blocks, units, channels.

This module knows sizes and the names of scopes; it must not know scores or masks.
"""

import math
import re
from fractions import Fraction

import attrs

from prunekit.errors import ConfigError


@attrs.frozen
class NofM:
    """Keep n of every m consecutive input channels; 2:4 is ``NofM(2, 4)``."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@attrs.frozen
class Blocks:
    """Keep or drop blocks of ``rows`` output units x ``columns`` connections, ranked by the sum of their scores."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@attrs.frozen
class Units:
    """Keep or drop whole output units (filters of a convolution), ranked by the sum of their scores."""

    def __str__(self) -> str:
        return "units"


@attrs.frozen
class Channels:
    """Keep or drop whole channels, across all layers that produce them, ranked by the sum of their scores.

    The layers that share channels depend on the network: see ``prunekit.layers.channels.groups``.
    """

    def __str__(self) -> str:
        return "channels"


Pattern = NofM | Blocks | Units | Channels


def parse_pattern(text: str) -> Pattern:
    """Parse "2:4" (two of every four input channels), "4x1" (rows x columns), "units" or "channels".

    >>> parse_pattern("2:4"), parse_pattern("16x1"), parse_pattern("units")
    (NofM(n=2, m=4), Blocks(rows=16, columns=1), Units())

    Raises:
        ConfigError: the text is anything else, has a size of 0, or keeps more than M of M.
    """
    sizes = re.fullmatch(r"\s*(\d+)\s*([:xX])\s*(\d+)\s*", text)
    for whole in (Units(), Channels()):
        if text.strip() == str(whole):
            return whole
    if sizes is None:
        raise ConfigError(
            f"pattern {text!r} is not understood, expected for example '2:4', '4x1', 'units' or 'channels'"
        )
    first, second = int(sizes[1]), int(sizes[3])
    if min(first, second) < 1:
        raise ConfigError(f"pattern {text!r} has a size of 0, expected at least 1")
    if sizes[2] != ":":
        return Blocks(first, second)
    if first > second:
        raise ConfigError(
            f"pattern {text!r} keeps {first} of {second}, expected at most {second}; write N:M, as in 2:4"
        )
    return NofM(first, second)


def pattern_problem(pattern: Pattern | None, density: float, outputs: int, fan_shape: tuple[int, ...]) -> str:
    """Return why a pattern does not fit a layer or a density, or "" if it does."""
    if isinstance(pattern, NofM):
        if not 0 < pattern.n <= pattern.m or fan_shape[0] % pattern.m:
            return f"pattern {pattern} does not divide {fan_shape[0]} input channels"
        if not math.isclose(density, pattern.n / pattern.m):
            return (
                f"pattern {pattern} needs density {pattern.n / pattern.m:g}, but got {density:g}; "
                "set that density, with a schedule without intermediate densities, such as one-shot"
            )
    if isinstance(pattern, Blocks):
        fan = math.prod(fan_shape)
        if min(pattern.rows, pattern.columns) < 1 or outputs % pattern.rows or fan % pattern.columns:
            return f"blocks of {pattern.rows} x {pattern.columns} do not divide a layer of {outputs} x {fan}"
    return ""


def scope_problem(pattern: Pattern | None, scope: str | None) -> str:
    """Return why a scope does not fit a pattern, or "" if it does."""
    if isinstance(pattern, Channels) and scope in {"unit", "global"}:
        return f"channels compete only within the layers that share them, not with scope {scope!r}; use scope 'layer'"
    if isinstance(pattern, Units) and scope == "unit":
        return "whole units compete with each other, not with scope 'unit'; use scope 'layer'"
    if isinstance(pattern, Units) and scope == "global":
        return "units of different layers have different sizes, so their scores cannot be compared; use scope 'layer'"
    if isinstance(pattern, NofM) and scope == "global":
        return f"pattern {pattern} keeps the same number in every group, so layers cannot compete; use scope 'layer'"
    return ""


def piece_size(pattern: Pattern | None, fan: int) -> int:
    """Return how many connections are kept or dropped together, in a layer with ``fan`` connections per unit."""
    if isinstance(pattern, Units | Channels):
        return fan
    return pattern.rows * pattern.columns if isinstance(pattern, Blocks) else 1


def kept_count(density: float, total: int) -> int:
    """Return round(density * total), halves rounded up, computed exactly.

    >>> kept_count(0.5, 5)
    3
    """
    return math.floor(Fraction(density) * total + Fraction(1, 2))


def requested_count(density: float, total: int, pattern: Pattern | None = None, fan: int = 1) -> int:
    """Return how many of ``total`` connections a density keeps, as whole blocks or units if the pattern has them.

    >>> requested_count(0.3, 70, Units(), fan=7)  # 3 of 10 units
    21

    Args:
        density: kept / total, in (0, 1].
        total: connections of the layer.
        pattern: what is kept or dropped together; ``None``: single connections.
        fan: connections of one unit.
    """
    size = piece_size(pattern, fan)
    return kept_count(density, total // size) * size
