"""A third-party command: ``prunekit densities FILE`` lists the masks of a file, sparsest first."""

import click

from prunekit import hookimpl, load_masks


@click.command()
@click.argument("file")
def densities(file: str) -> None:
    """Print the density of each mask in FILE, sparsest first."""
    for name, density in sorted(load_masks(file).densities().items(), key=lambda item: item[1]):
        click.echo(f"{density:8.4f}  {name}")


@hookimpl
def prunekit_commands() -> list[click.Command]:
    return [densities]
