"""Advice in words for networks that run no faster in any sparse form, derived from measured times.

This module must not measure; a function passed to it does.
"""

from collections.abc import Callable, Mapping, Sequence

from prunekit.deployment.bench.accounting import Account
from prunekit.deployment.bench.crossover import LEAST
from prunekit.deployment.bench.records import DENSE, NO_GAIN, DeviceResult, LayerResult
from prunekit.layers.lookup import display_name

_MEASURED_LAYERS = 3
"""Number of layers whose crossover is measured: those that take most time in the dense network."""

_NOTABLE_SHARE = 0.5
"""Share of all time, or of all multiply-adds, that gets a line."""

_STEADY = 1.5
"""Largest ratio of upper to lower quartile on an idle machine; most are below 1.2."""

Crossover = Callable[[str, int], float | None]
"""Layer, batch size -> density below which the layer runs faster sparse; ``None``: no measured density."""


def noise_warning(comparison: DeviceResult) -> tuple[str, ...]:
    """Return a line that names the batch sizes whose times vary too much to be reliable; empty if none do."""
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
    return (f"times vary widely at batch {_and(sizes)}; measure again on an idle machine",)


def advise(
    account: Account, comparison: DeviceResult, layers: Sequence[LayerResult], crossover: Crossover
) -> tuple[str, ...]:
    """Return lines that say at which batch sizes no form is faster and which density would be; else nothing.

    Args:
        account: weights and multiply-adds of the network.
        comparison: the results of all forms on the CPU.
        layers: the results of the masked layers.
        crossover: measures the crossover of a layer at a batch size.
    """
    dense = next(form for form in comparison.forms if form.name == DENSE)
    best = {
        size: min((form.ratios[size] for form in comparison.forms if form != dense), default=1.0)
        for size in dense.latencies
    }
    lost = [size for size, ratio in best.items() if ratio > NO_GAIN]
    if not lost:
        return ()
    lines = [_no_gain({size: best[size] for size in lost}, len(comparison.forms))]
    lines += _shares(account, {size: dense.latencies[size].median for size in lost}, layers)
    slow = sorted(
        (layer for layer in layers if any(layer.ratios.get(size, 0) > NO_GAIN for size in lost)),
        key=lambda layer: -sum(layer.dense[size] for size in lost),
    )
    # One layer of each shape, since the result holds for the others.
    shapes = {(layer.kind, layer.shape): layer for layer in reversed(slow)}
    for layer in sorted(shapes.values(), key=slow.index)[:_MEASURED_LAYERS]:
        sizes = [size for size in lost if layer.ratios[size] > NO_GAIN]
        lines.append(_needed(layer, {size: crossover(layer.name, size) for size in sizes}))
    if "shrunk" in comparison.unavailable:
        lines.append(
            "removing whole channels is faster without sparse kernels: prune with --pattern channels, then "
            "prunekit export --to shrunk"
        )
    return tuple(lines)


def _no_gain(best: Mapping[int, float], forms: int) -> str:
    where = f"at batch {_and(best)}"
    if forms == 1:
        return f"no form is faster {where}: no sparse form is available"
    times = _and(f"{ratio:.2f}" for ratio in best.values())
    return f"no form is faster {where}: the fastest takes {times} of the dense time"


def _shares(account: Account, dense: Mapping[int, float], layers: Sequence[LayerResult]) -> list[str]:
    """Return a line if the layers that can run sparse take little of the time or of the multiply-adds."""
    lines = []
    measured = [layer for layer in layers if layer.dense]
    shares = {size: sum(layer.dense[size] for layer in measured) / total for size, total in dense.items()}
    little = {size: share for size, share in shares.items() if share < _NOTABLE_SHARE}
    if measured and little:
        lines.append(
            f"layers that can run sparse take {_and(f'{share:.0%}' for share in little.values())} of the dense time at "
            f"batch {_and(little)}; the rest does not change"
        )
    if account.multiply_adds and account.other / account.multiply_adds > _NOTABLE_SHARE:
        share = account.other / account.multiply_adds
        lines.append(f"{share:.0%} of the multiply-adds are outside of prunable layers, for example in attention")
    return lines


def _needed(layer: LayerResult, densities: Mapping[int, float | None]) -> str:
    found = {size: density for size, density in densities.items() if density is not None}
    parts = [f"below density {density:.2g} at batch {size}" for size, density in found.items()]
    if never := densities.keys() - found.keys():
        parts.append(f"at no density down to 1/{1 / LEAST:.0f} at batch {_and(sorted(never))}")
    shape = " x ".join(map(str, layer.shape))
    described = f"{display_name(layer.name)} ({layer.kind}, {shape}) has density {layer.density:.2g}"
    return f"{described}; on this machine it is faster sparse {_and(parts)}"


def _and(parts: object) -> str:
    words = [str(part) for part in parts]  # type: ignore[attr-defined]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
