"""Densities over layers: one total, shared out by a rule, and the total met exactly.

Rules: "uniform", "erdos-renyi" (Mocanu et al. 2018) and "erdos-renyi-kernel" (Evci et al. 2020). A pure function of
sizes; it must not know names that users write, schedules or scores.
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
    """Return layer -> density such that all layers together keep ``round(density * weights)``, exactly.

    Every layer keeps at least one weight. A layer whose share would exceed its weights stays dense and the others
    share what is left, as in RigL. The share of a layer's weights is proportional to

    - "uniform": 1;
    - "erdos-renyi": (inputs + outputs) / (inputs * outputs), kernels not counted (Mocanu et al. 2018, eq. 1);
    - "erdos-renyi-kernel": (inputs + outputs + height + width) / (inputs * outputs * height * width)
      (Evci et al. 2020, section 3), the same for a layer without a kernel.

    Inputs and outputs are those of one group: a grouped convolution, or a layer whose positions have weights of their
    own, is many small networks side by side, each a random graph of its own.

    Args:
        layers: all prunable layers; the total is of their weights.
        density: kept / total, in (0, 1].
        rule: how to share.
        dense: layers that stay at density 1; the others get sparser, so that the total is met.
        pattern: blocks or whole units: each layer's share is rounded to whole ones, at least one, and the total is
            met as well as that allows.

    Raises:
        ConfigError: a total that cannot be met; N:M, which has one density for all layers.
    """
    if isinstance(pattern, NofM):
        raise ConfigError(f"pattern {pattern} has density {pattern.n / pattern.m:g} in every layer, nothing to share")
    weights = {layer.name: layer.weights for layer in layers}
    budget = kept_count(density, sum(weights.values())) - sum(weights[name] for name in dense)
    free = [layer for layer in layers if layer.name not in dense]
    _check_budget(density, budget, weights, dense, [layer.name for layer in free])
    raw = {layer.name: _factor(layer, rule) * layer.weights for layer in free}
    kept = _share_out(budget, raw, {layer.name: layer.weights for layer in free})
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
            f"density {density:g} cannot be met: {', '.join(dense)}, which stay dense, are {share:.4g} of the "
            f"{total:,} weights, and each other layer keeps at least one; raise the density or keep fewer layers dense"
        )
    if budget < len(free):
        raise ConfigError(
            f"density {density:g} keeps {budget:,} of {total:,} weights, fewer than there are layers ({len(free)}); "
            "raise the density"
        )
    if budget > (room := sum(weights[name] for name in free)):
        raise ConfigError(f"density {density:g} asks for {budget:,} weights, but only {room:,} are not kept dense")


def _share_out(budget: int, raw: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Share ``budget`` in proportion to ``raw``: whole numbers from 1 to ``room``, which is enough."""
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
    # What rounding left over goes, one by one, to whom it did the most wrong.
    while (left := budget - sum(kept.values())) != 0:
        step = 1 if left > 0 else -1
        able = (name for name in kept if (kept[name] < room[name] if step > 0 else kept[name] > 1))
        most = sorted(able, key=lambda name: step * (kept[name] - wish[name]))[: abs(left)]
        for name in most:
            kept[name] += step
    return kept
