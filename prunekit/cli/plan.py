"""``prunekit plan``: print the layers and stages of a run without training."""

from typing import TYPE_CHECKING, Any

import click

from prunekit.cli.options import config_options, read_config

if TYPE_CHECKING:
    from prunekit.contracts.schedule import MaskUpdate
    from prunekit.runs.preparation import PreparedRun

_SHOWN_UPDATES = 3
"""Mask updates to show at the beginning and at the end of a stage that has many."""


@click.command()
@config_options
def plan(**flags: Any) -> None:
    """Print the layers, stages, densities and kept weights of a run without training.

    RECIPE is a TOML file with the settings of a run; options override it.
    """
    from prunekit.runs.entry import preview

    prepared = preview(read_config(**flags))
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
    from prunekit.runs.plan_counts import kept_by_stage

    total, kept = sum(layer.weights for layer in prepared.layers), kept_by_stage(prepared)
    columns = ("stage", "name", "training", "starts from", "densities", "kept", "weights left")
    table = make_table("Stages", *columns, numbers=("stage", "kept", "weights left"))
    for number, (stage, left) in enumerate(zip(prepared.plan.stages, kept, strict=True)):
        start = f"step {stage.start.step}" if stage.start.kind == "step" else stage.start.kind
        start = "initial" if start == "previous" and number == 0 else start
        updates = "\n".join(_shortened([_describe(update) for update in stage.updates])) or "-"
        table.add_row(str(number), stage.name, str(stage.budget), start, updates, f"{left:,}", f"{left / total:.4f}")
    print_table(table)
    click.echo(
        f"{total:,} prunable weights, biases not counted; weights left {kept[-1] / total:.2f} "
        f"(the paper's compression ratio), {kept[-1]:,} weights"
    )


def _shortened(lines: list[str]) -> list[str]:
    """Omit the middle of a long list of mask updates."""
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
    """Write 0.00390625 as 1/256, as in a structure."""
    inverse = 1 / density
    return f"1/{inverse:.0f}" if inverse.is_integer() and inverse > 1 else f"{density:g}"
