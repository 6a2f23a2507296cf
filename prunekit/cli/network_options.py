"""The argument and options by which ``export`` and ``bench`` are told of a pruned network."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.contracts.export_format import PrunedNetwork

_OPTIONS = (
    click.argument("name", metavar="RUN_OR_MODEL"),
    click.option("--masks", metavar="FILE", help="A model's masks; without, what is exactly zero is dropped."),
    click.option("--weights", metavar="FILE", help="A model's weights: safetensors, sparse checkpoint or state dict."),
    click.option(
        "--input",
        "inputs",
        metavar="SHAPE",
        multiple=True,
        help="Shape of one sample of a model's argument, without the batch: 3x55x47; whole numbers from 0 to 999: "
        "128:0..999; one for each argument.",
    ),
    click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Do without a plugin; repeatable."),
)


def pruned_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument and options that ``read_pruned`` takes."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def read_pruned(
    name: str, masks: str | None, weights: str | None, inputs: tuple[str, ...], no_plugins: tuple[str, ...]
) -> "PrunedNetwork":
    """Open the network that the options of ``pruned_options`` name.

    Raises:
        PrunekitError: as ``open_pruned``.
    """
    from prunekit.deployment.pruned_network import open_pruned

    return open_pruned(name, masks=masks, weights=weights, inputs=inputs, no_plugins=no_plugins)
