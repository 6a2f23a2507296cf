"""Allocate one total density to the layers of a network, so that the total is exact.

Rules: "uniform", "erdos-renyi" (Mocanu et al. 2018) and "erdos-renyi-kernel" (Evci et al. 2020). A pure function of
sizes; it must not know aliases of layers, schedules or scores.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from prunekit.errors import ConfigError
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import NofM, Pattern, kept_count, piece_size

Rule = Literal["uniform", "erdos-renyi", "erdos-renyi-kernel"]
RULES: tuple[Rule, ...] = get_args(Rule)


def allocate_density(
    layers: Sequence[LayerShape],
    density: float,
    rule: Rule = "uniform",
    dense: Collection[str] = (),
    pattern: Pattern | None = None,
) -> dict[str, float]:
    """Return layer name -> density such that all layers together keep exactly ``round(density * weights)``.

    >>> layers = [LayerShape("small", "linear", 1, 10, (10,)), LayerShape("large", "linear", 1, 100, (100,))]
    >>> allocate_density(layers, 0.2, "erdos-renyi")
    {'small': 1.0, 'large': 0.192}

    Every layer keeps at least one weight. A layer whose share would exceed its weights stays dense, and the others
    divide the rest, as in RigL. The density of a layer is proportional to

    - "uniform": 1;
    - "erdos-renyi": (inputs + outputs) / (inputs * outputs), kernels not counted (Mocanu et al. 2018, eq. 1);
    - "erdos-renyi-kernel": (inputs + outputs + height + width) / (inputs * outputs * height * width)
      (Evci et al. 2020, section 3), the same for a layer without a kernel.

    Inputs and outputs are those of one group: a grouped convolution, or a layer whose positions have their own weights,
    is many small networks side by side, each of them a random graph.

    Args:
        layers: all prunable layers; the total counts their weights.
        density: kept / total, in (0, 1].
        rule: how to divide the kept weights among the layers.
        dense: names of layers kept at density 1; the others become sparser, so that the total is the same.
        pattern: with blocks or whole units, each layer's share is rounded to whole pieces, at least one, and the total
            is as close as that allows.

    Raises:
        ConfigError: the total cannot be reached, or the pattern is N:M, which has one density in all layers.
    """
    if isinstance(pattern, NofM):
        raise ConfigError(
            f"pattern {pattern} has density {pattern.n / pattern.m:g} in every layer, so there is nothing to distribute"
        )
    weights = {layer.name: layer.weights for layer in layers}
    budget = kept_count(density, sum(weights.values())) - sum(weights[name] for name in dense)
    free = [layer for layer in layers if layer.name not in dense]
    _check_budget(density, budget, weights, dense, [layer.name for layer in free])
    raw = {layer.name: _factor(layer, rule) * layer.weights for layer in free}
    kept = _proportional_shares(budget, raw, {layer.name: layer.weights for layer in free})
    sizes = {layer.name: piece_size(pattern, layer.fan) for layer in free}
    whole = {name: max(1, kept_count(1 / sizes[name], count)) * sizes[name] for name, count in kept.items()}
    return {name: 1.0 if name in dense else min(1.0, whole[name] / weights[name]) for name in weights}


def _factor(layer: LayerShape, rule: Rule) -> float:
    inputs, *kernel = layer.fan_shape
    if rule == "uniform":
        return 1.0
    sides = [inputs, layer.outputs, *(kernel if rule == "erdos-renyi-kernel" else ())]
    return float(sum(sides) / math.prod(sides))


def _check_budget(
    density: float, budget: int, weights: Mapping[str, int], dense: Collection[str], free: Sequence[str]
) -> None:
    total = sum(weights.values())
    if dense and budget < len(free):
        share = sum(weights[name] for name in dense) / total
        raise ConfigError(
            f"density {density:g} cannot be reached: the layers kept dense ({', '.join(dense)}) hold {share:.4g} of "
            f"the {total:,} weights, and every other layer keeps at least one; raise the density or keep fewer layers "
            "dense"
        )
    if budget < len(free):
        raise ConfigError(
            f"density {density:g} keeps {budget:,} of {total:,} weights, fewer than the number of layers "
            f"({len(free)}); raise the density"
        )
    if budget > (room := sum(weights[name] for name in free)):
        raise ConfigError(
            f"density {density:g} needs {budget:,} weights from the layers not kept dense, which have only {room:,}"
        )


def _proportional_shares(budget: int, raw: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Divide ``budget`` in proportion to ``raw`` into whole numbers from 1 to ``room``, which has enough room."""
    full: set[str] = set()
    while True:
        left = budget - sum(room[name] for name in full)
        scale = left / (sum(raw[name] for name in raw if name not in full) or 1)
        over = {name for name in raw if name not in full and scale * raw[name] > room[name]}
        if not over:
            break
        full |= over
    wish = {name: float(room[name]) if name in full else scale * raw[name] for name in raw}
    kept = {name: min(room[name], max(1, math.floor(wish[name]))) for name in raw}
    # The remainder of rounding is given, one by one, to the layers with the largest rounding errors.
    while (left := budget - sum(kept.values())) != 0:
        step = 1 if left > 0 else -1
        able = (name for name in kept if (kept[name] < room[name] if step > 0 else kept[name] > 1))
        most = sorted(able, key=lambda name: step * (kept[name] - wish[name]))[: abs(left)]
        for name in most:
            kept[name] += step
    return kept
