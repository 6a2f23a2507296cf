"""The tables that ``prunekit bench`` prints. It must not measure anything."""

import math
from typing import TYPE_CHECKING

import click

from prunekit.cli.tables import make_table, print_table

if TYPE_CHECKING:
    from prunekit.deployment.bench.records import Bench, DeviceResult, FormResult

_THOUSAND = 1000
_PREFIXES = "kMGT"


def print_bench(found: "Bench") -> None:
    """Print the layers, a table for each device, and the lines that explain them."""
    click.echo(f"{found.title}\n")
    _print_layers(found)
    dense = found.comparisons[0].forms[0].file
    for comparison in found.comparisons:
        _print_comparison(comparison)
    if found.layers and all(layer.reason for layer in found.layers) and "csr" not in found.comparisons[0].unavailable:
        click.echo("auto: all layers remain dense")
    click.echo(
        f"on disk, a sparse checkpoint takes {_bytes(found.checkpoint)} ({found.checkpoint / dense:.2g} of dense; "
        f"dense once loaded), and the masks alone {_bytes(found.masks)}"
    )
    for line in found.advice:
        click.echo(line)


def _print_layers(found: "Bench") -> None:
    from prunekit.layers.lookup import display_name

    account = found.account
    numbers = ("weights", "kept", "density", "multiply-adds", "kept multiply-adds")
    click.echo("Weights, and theoretical multiply-adds for one sample (kept weights x uses)")
    table = make_table("", "layer", "kind", *numbers, numbers=numbers)
    for layer in account.layers:
        density = f"{layer.kept / layer.weights:.4f}"
        costs = (
            (_count(layer.multiply_adds), _count(layer.kept_multiply_adds)) if layer.kind != "parameter" else ("-", "-")
        )
        table.add_row(display_name(layer.name), layer.kind, f"{layer.weights:,}", f"{layer.kept:,}", density, *costs)
    if account.other:
        table.add_row("other", "outside layers", "", "", "", _count(account.other), _count(account.other))
    table.add_section()
    totals = (f"{account.weights:,}", f"{account.kept:,}", f"{account.kept / account.weights:.4f}")
    table.add_row("total", "", *totals, _count(account.multiply_adds), _count(account.kept_multiply_adds))
    print_table(table)


def _print_comparison(comparison: "DeviceResult") -> None:
    names = tuple(form.name for form in comparison.forms)
    click.echo(f"{comparison.machine}; medians, measured in turns")
    table = make_table("", "", *names, numbers=names)
    table.add_row("file", *(_bytes(form.file) for form in comparison.forms))
    table.add_row("in memory", *(_bytes(form.memory) for form in comparison.forms))
    for size in comparison.forms[0].latencies:
        table.add_section()
        medians = [form.latencies[size].median for form in comparison.forms]
        table.add_row(f"batch {size}: ms", *(_ms(median) for median in medians))
        table.add_row("quartiles", *(_quartiles(form, size) for form in comparison.forms))
        table.add_row("samples/s", *(_rate(size / median) for median in medians))
        table.add_row("of dense", *(f"{form.ratios[size]:.2f}" for form in comparison.forms))
    print_table(table)
    for form, reason in comparison.unavailable.items():
        click.echo(f"{form}: {reason}")


def _quartiles(form: "FormResult", size: int) -> str:
    latency = form.latencies[size]
    return f"{_ms(latency.lower)}-{_ms(latency.upper)}"


def _ms(seconds: float) -> str:
    return _significant(seconds * 1e3)


def _bytes(count: float) -> str:
    return f"{count:.0f} B" if count < _THOUSAND else f"{_scaled(count)}B"


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 10 * _THOUSAND else _scaled(number)


def _rate(number: float) -> str:
    return _significant(number) if number < _THOUSAND else _scaled(number)


def _scaled(number: float) -> str:
    """Write a number of at least 1,000 with an SI prefix."""
    power = min(len(_PREFIXES), int(math.log10(number)) // 3)
    return f"{_significant(number / _THOUSAND**power)} {_PREFIXES[power - 1]}"


def _significant(number: float) -> str:
    """Write three significant digits without an exponent."""
    rounded = float(f"{number:.3g}")
    places = max(0, 2 - math.floor(math.log10(rounded))) if rounded else 0
    return f"{rounded:,.{places}f}"
