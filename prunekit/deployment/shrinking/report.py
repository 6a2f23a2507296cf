"""The report of shrinking: the sizes of each layer before and after. This module knows only numbers."""

from collections.abc import Iterable, Mapping

import attrs

from prunekit.layers.lookup import display_name


@attrs.frozen
class LayerSizes:
    """The sizes of one layer before and after.

    Attributes:
        units: number of units, before and after.
        inputs: number of input channels, before and after.
        weights: number of weights, dropped ones included, without biases, before and after.
        constant_units: reason why units with a constant output were kept -> number of such units.
    """

    units: tuple[int, int]
    inputs: tuple[int, int]
    weights: tuple[int, int]
    constant_units: Mapping[str, int]


@attrs.frozen
class Report:
    """The sizes of all layers, in the order in which they were called.

    Attributes:
        layers: layer -> sizes; without layers that were never called or whose type is unknown.
    """

    layers: Mapping[str, LayerSizes]

    @property
    def units(self) -> tuple[int, int]:
        """Number of units of all layers, before and after."""
        return _sums(sizes.units for sizes in self.layers.values())

    @property
    def weights(self) -> tuple[int, int]:
        """Number of weights of all layers, dropped ones included, without biases, before and after."""
        return _sums(sizes.weights for sizes in self.layers.values())

    def __str__(self) -> str:
        lines = [f"{_line('all layers', self.units, self.weights)}"]
        for name, sizes in self.layers.items():
            lines.append(_line(display_name(name), sizes.units, sizes.weights))
            for reason, count in sizes.constant_units.items():
                lines.append(f"  {count:,} constant {'unit' if count == 1 else 'units'} kept: {reason}")
        return "\n".join(lines)


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    known = list(pairs)
    return sum(before for before, _ in known), sum(after for _, after in known)


def _line(name: str, units: tuple[int, int], weights: tuple[int, int]) -> str:
    return f"{name}: {units[0]:,} -> {units[1]:,} units, {weights[0]:,} -> {weights[1]:,} weights"
