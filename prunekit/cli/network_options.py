"""The argument and options with which ``export`` and ``bench`` name a pruned network."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.contracts.export_format import PrunedNetwork

_OPTIONS = (
    click.argument("name", metavar="RUN_OR_MODEL"),
    click.option("--masks", metavar="FILE", help="Masks of a model; by default, its zero weights are dropped."),
    click.option("--weights", metavar="FILE", help="Weights of a model: safetensors, sparse checkpoint or state dict."),
    click.option(
        "--input",
        "inputs",
        metavar="SHAPE",
        multiple=True,
        help="Shape of one sample of a model's input, without the batch dimension: 3x55x47, or 128:0..999 for integers "
        "from 0 to 999. Repeat for each input.",
    ),
    click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Plugin to disable; repeatable."),
)


def pruned_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the argument and options that ``read_pruned`` takes."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def read_pruned(
    name: str, masks: str | None, weights: str | None, inputs: tuple[str, ...], no_plugins: tuple[str, ...]
) -> "PrunedNetwork":
    """Open the network specified by the options that ``pruned_options`` adds.

    Raises:
        PrunekitError: see ``prunekit.deployment.pruned_network.open_pruned``.
    """
    from prunekit.deployment.pruned_network import open_pruned

    return open_pruned(name, masks=masks, weights=weights, inputs=inputs, no_plugins=no_plugins)
