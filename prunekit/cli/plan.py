"""``prunekit plan``: layers and stages of a run, without training it."""

from typing import TYPE_CHECKING, Any

import click

from prunekit.cli.options import config_options, read_config

if TYPE_CHECKING:
    from prunekit.contracts.schedule import MaskUpdate
    from prunekit.runs.preparation import PreparedRun

_SHOWN_UPDATES = 3
"""Mask updates of a stage that are shown at either end, where it has many."""


@click.command()
@config_options
def plan(**flags: Any) -> None:
    """Print the layers, stages, densities and weights of a run, without training."""
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect
    from prunekit.runs.preparation import prepare

    config = read_config(**flags)
    manager = make_manager(config.no_plugins)
    prepared = prepare(config, manager, collect(manager), device="meta")
    click.echo(f"{prepared.headline}\n")
    _print_layers(prepared)
    _print_stages(prepared)


def _print_layers(prepared: "PreparedRun") -> None:
    from prunekit.cli.tables import make_table, print_table

    numbers = ("groups", "outputs", "connections", "weights")
    table = make_table("Prunable layers", "layer", "kind", *numbers, numbers=numbers)
    for layer in prepared.layers:
        fan = " x ".join(map(str, layer.fan_shape))
        table.add_row(layer.name, layer.kind, f"{layer.groups:,}", f"{layer.outputs:,}", fan, f"{layer.weights:,}")
    print_table(table)


def _print_stages(prepared: "PreparedRun") -> None:
    from prunekit.cli.tables import make_table, print_table

    weights = {layer.name: layer.weights for layer in prepared.layers}
    total = sum(weights.values())
    given = {name: int(mask.sum()) for name, mask in prepared.given.masks.items()}
    kept = weights | given
    numbers = ("stage", "kept", "weights left")
    columns = ("stage", "name", "training", "starts from", "densities", "kept", "weights left")
    table = make_table("Stages", *columns, numbers=numbers)
    for number, stage in enumerate(prepared.plan.stages):
        for update in stage.updates:
            kept |= _kept(update, prepared)
        left = sum(kept.values())
        start = f"step {stage.start.step}" if stage.start.kind == "step" else stage.start.kind
        start = "initial" if start == "previous" and number == 0 else start
        updates = "\n".join(_shortened(list(map(_describe, stage.updates)))) or "-"
        table.add_row(str(number), stage.name, str(stage.budget), start, updates, f"{left:,}", f"{left / total:.4f}")
    print_table(table)
    left = sum(kept.values())
    click.echo(
        f"{total:,} prunable weights, biases not counted; weights left {left / total:.2f} "
        f"(the paper's compression ratio), {left:,} weights"
    )


def _kept(update: "MaskUpdate", prepared: "PreparedRun") -> dict[str, int]:
    """Return how many weights an update leaves each layer."""
    from prunekit.masks.selection import Channels, requested_count

    layers = {layer.name: layer for layer in prepared.layers}
    if prepared.channel_groups is not None and isinstance(update.pattern, Channels):
        return {
            name: int(share * layers[name].weights)
            for name, share in prepared.channel_groups.kept_shares(update.targets).items()
        }
    return {
        name: requested_count(density, layers[name].weights, update.pattern, layers[name].fan)
        for name, density in update.targets.items()
    }


def _shortened(lines: list[str]) -> list[str]:
    """Leave out the middle of a long list of updates."""
    if len(lines) <= 2 * _SHOWN_UPDATES + 1:
        return lines
    between = f"... {len(lines) - 2 * _SHOWN_UPDATES} more ..."
    return [*lines[:_SHOWN_UPDATES], between, *lines[-_SHOWN_UPDATES:]]


def _describe(update: "MaskUpdate") -> str:
    targets = " ".join(f"{layer}={_fraction(density)}" for layer, density in update.targets.items())
    words = [targets, f"per {update.scope}" if update.scope else "", f"as {update.pattern}" if update.pattern else ""]
    if update.by == "random":
        words.append("at random")
    if update.grow is not None and not update.reopens:
        by = "by gradient" if update.grow.by == "gradient" else "at random"
        words.append(f"({update.grow.fraction:.0%} dropped and grown {by})")
    return (f"at {update.at:.0%}: " if update.at else "") + " ".join(filter(None, words))


def _fraction(density: float) -> str:
    """Write 0.00390625 as 1/256, the way structures are written."""
    inverse = 1 / density
    return f"1/{inverse:.0f}" if inverse.is_integer() and inverse > 1 else f"{density:g}"
