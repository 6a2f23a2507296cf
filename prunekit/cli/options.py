"""The options that ``run`` and ``plan`` share, and from them the configuration of a run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.runs.config import RunConfig

_OPTIONS = (
    click.argument("recipe", required=False, type=click.Path()),
    click.option("--task", metavar="NAME", help="What is being learned; also module:Class or file.py:Class."),
    click.option("--data", metavar="FOLDER", help="The task's data; short for -o task.data=FOLDER."),
    click.option("--criterion", metavar="NAME", help="Which connections of a layer to keep."),
    click.option("--schedule", metavar="NAME", help="When to prune what."),
    click.option("--structure", metavar="TEXT", help="Layers and densities in order: 'f=1/256 5b=1/128'."),
    click.option("--density", metavar="NUMBER", help="One density for all layers, in (0, 1]."),
    click.option(
        "--distribution",
        metavar="NAME",
        help="How layers share --density: uniform, erdos-renyi, erdos-renyi-kernel; the total is met exactly.",
    ),
    click.option("--keep-dense", multiple=True, metavar="LAYER", help="Do not prune it; also first, last; repeatable."),
    click.option(
        "--pattern", metavar="TEXT", help="What stays or goes together: 2:4, 4x1 (rows x columns), units, channels."
    ),
    click.option("--scope", metavar="NAME", help="What competes: unit, layer or global."),
    click.option("--masks", metavar="FILE", help="Start from the masks in FILE."),
    click.option("--freeze-masks", is_flag=True, default=None, help="Only re-train under --masks, in one stage."),
    click.option("--dense", is_flag=True, default=None, help="Train through all stages, prune nothing: the control."),
    click.option("--weights", metavar="FILE", help="Start from the deployed network's weights in FILE."),
    click.option("--sparse-model", is_flag=True, default=None, help="Write the model as a sparse checkpoint."),
    click.option(
        "-o", "--option", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Set anything; repeatable."
    ),
    click.option("--seed", metavar="NUMBER", help="The root of all randomness."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1."),
    click.option("--precision", metavar="NAME", help="fp32, bf16 or fp16; short for -o training.precision=NAME."),
    click.option("--keep", metavar="NUMBER", help="Checkpoints to keep; short for training.keep_checkpoints."),
    click.option("--out", metavar="FOLDER", help="The run folder."),
    click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Do without a plugin; repeatable."),
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
    """Return the configuration that a recipe and the options of ``config_options`` ask for.

    Raises:
        ConfigError: the recipe or an option is wrong.
    """
    from prunekit.errors import ConfigError
    from prunekit.runs.recipes import build_config, read_recipe

    for name, value in {"recipe": recipe, "--data": data, "--out": flags.get("out")}.items():
        if value == "":
            raise ConfigError(f"{name} is empty, expected a path; leave it out where none is meant")
    short = {"task.data": data, "training.precision": precision, "training.keep_checkpoints": keep}
    spelled = tuple(f"{path}={value}" for path, value in short.items() if value is not None)
    lists = {"no_plugins": list(no_plugins) or None, "keep_dense": list(keep_dense) or None}
    content = read_recipe(recipe) if recipe is not None else {}
    return build_config(content, flags | lists, spelled + overrides)
