"""Where nothing is gained, what would gain: lines for people, from figures that were measured.

This module must not measure: it is given a function that does.
"""

from collections.abc import Callable, Mapping, Sequence

from prunekit.deployment.bench.accounting import Account
from prunekit.deployment.bench.crossover import LEAST
from prunekit.deployment.bench.records import DENSE, NO_GAIN, DeviceResult, LayerResult
from prunekit.layers.lookup import display_name

_ASKED = 3
"""Layers whose crossover is measured: those in which the dense network spends most time."""

_TELLING = 0.5
"""A part of all time, or of all multiply-adds, that is worth a line."""

_STEADY = 1.5
"""Upper / lower quartile of a machine that does nothing else; most are below 1.2."""

Crossover = Callable[[str, int], float | None]
"""Layer, batch size -> density below which it gains; ``None``: none that was tried."""


def doubts(comparison: DeviceResult) -> tuple[str, ...]:
    """Return a line that says where times spread so widely that they say little; nothing where they do not."""
    sizes = sorted(
        {
            size
            for form in comparison.forms
            for size, latency in form.latencies.items()
            if latency.upper > _STEADY * latency.lower
        }
    )
    if not sizes:
        return ()
    return (f"times spread widely at batch {_and(sizes)}: something else ran; measure again on a quiet machine",)


def advise(
    account: Account, comparison: DeviceResult, layers: Sequence[LayerResult], crossover: Crossover
) -> tuple[str, ...]:
    """Return nothing where some form gains at every batch size; else lines that say so, and what would be needed.

    Args:
        account: of the network.
        comparison: the forms on the CPU.
        layers: masked layers.
        crossover: measures.
    """
    dense = next(form for form in comparison.forms if form.name == DENSE)
    best = {
        size: min((form.ratios[size] for form in comparison.forms if form != dense), default=1.0)
        for size in dense.latencies
    }
    lost = [size for size, ratio in best.items() if ratio > NO_GAIN]
    if not lost:
        return ()
    lines = [_nothing({size: best[size] for size in lost}, len(comparison.forms))]
    lines += _shares(account, {size: dense.latencies[size].median for size in lost}, layers)
    slow = sorted(
        (layer for layer in layers if any(layer.ratios.get(size, 0) > NO_GAIN for size in lost)),
        key=lambda layer: -sum(layer.dense[size] for size in lost),
    )
    # One of each shape: what is found holds for the others.
    shapes = {(layer.kind, layer.shape): layer for layer in reversed(slow)}
    for layer in sorted(shapes.values(), key=slow.index)[:_ASKED]:
        sizes = [size for size in lost if layer.ratios[size] > NO_GAIN]
        lines.append(_needed(layer, {size: crossover(layer.name, size) for size in sizes}))
    if "shrunk" in comparison.absent:
        lines.append(
            "whole channels gain without any sparse kernel: take --pattern channels, then prunekit export --to shrunk"
        )
    return tuple(lines)


def _nothing(best: Mapping[int, float], forms: int) -> str:
    where = f"at batch {_and(best)}"
    if forms == 1:
        return f"nothing is gained {where}: no sparse form is possible"
    times = _and(f"{ratio:.2f}" for ratio in best.values())
    return f"nothing is gained {where}: the fastest form takes {times} of the dense time"


def _shares(account: Account, dense: Mapping[int, float], layers: Sequence[LayerResult]) -> list[str]:
    """Say where the masked layers are not what takes the time."""
    lines = []
    measured = [layer for layer in layers if layer.dense]
    shares = {size: sum(layer.dense[size] for layer in measured) / total for size, total in dense.items()}
    little = {size: share for size, share in shares.items() if share < _TELLING}
    if measured and little:
        lines.append(
            f"layers that can run sparse take {_and(f'{share:.0%}' for share in little.values())} of the dense time at "
            f"batch {_and(little)}; the rest stays as it is"
        )
    if account.multiply_adds and account.other / account.multiply_adds > _TELLING:
        share = account.other / account.multiply_adds
        lines.append(f"{share:.0%} of the multiply-adds are outside of prunable layers, as those of attention are")
    return lines


def _needed(layer: LayerResult, densities: Mapping[int, float | None]) -> str:
    found = {size: density for size, density in densities.items() if density is not None}
    parts = [f"below density {density:.2g} at batch {size}" for size, density in found.items()]
    if never := densities.keys() - found.keys():
        parts.append(f"at no density down to 1/{1 / LEAST:.0f} at batch {_and(sorted(never))}")
    shape = " x ".join(map(str, layer.shape))
    told = (
        f"{display_name(layer.name)} ({layer.kind}, {shape}) has density {layer.density:.2g}; as measured here it gains"
    )
    return f"{told} {_and(parts)}"


def _and(parts: object) -> str:
    words = [str(part) for part in parts]  # type: ignore[attr-defined]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
