"""What shrinking did to each layer, and what it had to leave. This module knows numbers alone."""

from collections.abc import Iterable, Mapping

import attrs

from prunekit.layers.lookup import display_name


@attrs.frozen
class LayerSizes:
    """One layer before and after.

    Attributes:
        units: before and after.
        inputs: channels that it reads, before and after.
        weights: connections, kept or not, no biases, before and after.
        left: why units that put out a constant are still there -> how many.
    """

    units: tuple[int, int]
    inputs: tuple[int, int]
    weights: tuple[int, int]
    left: Mapping[str, int]


@attrs.frozen
class Report:
    """What shrinking did, by layer, in the order in which they were called.

    Attributes:
        layers: layer -> sizes; layers that were never called, or are of unknown types, are not here.
    """

    layers: Mapping[str, LayerSizes]

    @property
    def units(self) -> tuple[int, int]:
        """Units of all layers before and after."""
        return _sums(sizes.units for sizes in self.layers.values())

    @property
    def weights(self) -> tuple[int, int]:
        """Connections of all layers, kept or not, no biases, before and after."""
        return _sums(sizes.weights for sizes in self.layers.values())

    def __str__(self) -> str:
        lines = [f"{_line('all layers', self.units, self.weights)}"]
        for name, sizes in self.layers.items():
            lines.append(_line(display_name(name), sizes.units, sizes.weights))
            lines += [f"  {count:,} dead stay: {reason}" for reason, count in sizes.left.items()]
        return "\n".join(lines)


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    known = list(pairs)
    return sum(before for before, _ in known), sum(after for _, after in known)


def _line(name: str, units: tuple[int, int], weights: tuple[int, int]) -> str:
    return f"{name}: {units[0]:,} -> {units[1]:,} units, {weights[0]:,} -> {weights[1]:,} weights"
