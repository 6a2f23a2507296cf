"""The options that ``run`` and ``plan`` share, and the configuration that they describe."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.runs.config import RunConfig

_OPTIONS = (
    click.argument("recipe", required=False, type=click.Path()),
    click.option(
        "--task", metavar="NAME", help="Task: a name that 'prunekit list' shows, module:Class or file.py:Class."
    ),
    click.option("--data", metavar="FOLDER", help="Folder of the task's data; short for -o task.data=FOLDER."),
    click.option("--criterion", metavar="NAME", help="Criterion that selects the connections to keep."),
    click.option("--schedule", metavar="NAME", help="Schedule that divides the run into stages."),
    click.option("--structure", metavar="TEXT", help="Layers to prune, in order, and densities: 'f=1/256 5b=1/128'."),
    click.option("--density", metavar="NUMBER", help="One density for all layers: kept / total, in (0, 1]."),
    click.option(
        "--distribution",
        metavar="NAME",
        help="Distribution of --density over layers, which is then exact in total: uniform, erdos-renyi or "
        "erdos-renyi-kernel.",
    ),
    click.option(
        "--keep-dense", multiple=True, metavar="LAYER", help="Layer to keep dense, or first or last; repeatable."
    ),
    click.option(
        "--pattern",
        metavar="TEXT",
        help="Pattern of kept weights: N:M (2:4), blocks (4x1: rows x columns), units, channels.",
    ),
    click.option("--scope", metavar="NAME", help="Scope in which weights are ranked: unit, layer, global."),
    click.option("--masks", metavar="FILE", help="Start from the masks in FILE."),
    click.option("--freeze-masks", is_flag=True, default=None, help="Only retrain under --masks, in one stage."),
    click.option("--dense", is_flag=True, default=None, help="Train through all stages without pruning (control)."),
    click.option("--weights", metavar="FILE", help="Start from the weights of the network in FILE."),
    click.option("--sparse-model", is_flag=True, default=None, help="Write the model as a sparse checkpoint."),
    click.option(
        "-o",
        "--option",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Set any setting or option of a plugin; repeatable.",
    ),
    click.option("--seed", metavar="NUMBER", help="Root seed of all random numbers; by default 0."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; by default auto."),
    click.option("--precision", metavar="NAME", help="fp32, bf16 or fp16; short for -o training.precision=NAME."),
    click.option(
        "--keep", metavar="NUMBER", help="Step checkpoints to keep; short for -o training.keep_checkpoints=NUMBER."
    ),
    click.option("--out", metavar="FOLDER", help="Run folder; by default a new one in runs/."),
    click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Plugin to disable; repeatable."),
)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that ``read_config`` takes."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def read_config(
    recipe: str | None,
    overrides: tuple[str, ...],
    data: str | None,
    precision: str | None,
    keep: str | None,
    no_plugins: tuple[str, ...],
    keep_dense: tuple[str, ...],
    **flags: str | bool | None,
) -> "RunConfig":
    """Return the configuration that a recipe and the options of ``config_options`` describe.

    Raises:
        ConfigError: a wrong recipe or option.
    """
    from prunekit.errors import ConfigError
    from prunekit.runs.recipes import build_config, read_recipe

    for name, value in {"recipe": recipe, "--data": data, "--out": flags.get("out")}.items():
        if value == "":
            raise ConfigError(f"{name} is empty, expected a path; leave it out if there is none")
    short = {"task.data": data, "training.precision": precision, "training.keep_checkpoints": keep}
    spelled = tuple(f"{path}={value}" for path, value in short.items() if value is not None)
    lists = {"no_plugins": list(no_plugins) or None, "keep_dense": list(keep_dense) or None}
    content = read_recipe(recipe) if recipe is not None else {}
    return build_config(content, flags | lists, spelled + overrides)
