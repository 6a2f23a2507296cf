"""``prunekit masks``: look at mask files."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.masks import Masks

_BAR = 20  # characters


@click.group()
def masks() -> None:
    """Look at mask files."""


@masks.command()
@click.argument("file", type=click.Path())
def show(file: str) -> None:
    """Show shape and density of every mask in FILE, and what the file says of itself."""
    import json

    from prunekit.masks import load_masks

    loaded = load_masks(file)
    for key, value in loaded.info.items():
        click.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    _print_masks(loaded)


def _print_masks(masks: "Masks") -> None:
    from prunekit.cli.tables import make_table, print_table

    numbers = ("shape", "kept", "weights", "density")
    table = make_table("Masks", "parameter", *numbers, "", numbers=numbers)
    kept = {name: int(mask.sum()) for name, mask in masks.tensors.items()}
    for name, mask in masks.tensors.items():
        shape = " x ".join(map(str, mask.shape))
        table.add_row(name, shape, *_figures(kept[name], mask.numel()))
    table.add_section()
    weights = sum(mask.numel() for mask in masks.tensors.values())
    table.add_row("total", "", *_figures(sum(kept.values()), weights))
    print_table(table)


def _figures(kept: int, weights: int) -> tuple[str, str, str, str]:
    density = kept / weights if weights else 1.0
    filled = round(density * _BAR)
    return f"{kept:,}", f"{weights:,}", f"{density:.6f}", "█" * filled + "·" * (_BAR - filled)
