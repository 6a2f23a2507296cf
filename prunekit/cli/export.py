"""``prunekit export``: a pruned network as a file for whoever runs it."""

from typing import Any

import click

from prunekit.cli.network_options import pruned_options, read_pruned
from prunekit.deployment.export import MODULES


@click.command()
@pruned_options
@click.option("--to", required=True, type=click.Choice(list(MODULES)), help="The format.")
@click.option("-o", "--out", required=True, type=click.Path(), help="The file to write.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def export(to: str, out: str, force: bool, **flags: Any) -> None:
    """Write a pruned network as one file, checked against the masked network on sample inputs.

    RUN_OR_MODEL is a run folder, or file.py:function or module:Class, which called without arguments gives the network.
    """
    from prunekit.deployment.export.writing import check_free
    from prunekit.deployment.export.writing import export as write

    check_free(out, force=force)
    pruned = read_pruned(**flags)
    click.echo(str(pruned))
    exported = write(pruned, to, out, force=force)
    share = exported.size / exported.dense_size
    click.echo(f"{exported.path}: {exported.size:,} bytes, {share:.4g} of the dense file's {exported.dense_size:,}")
    click.echo(f"greatest difference of an output from the masked network's: {exported.error:.3g}")
    for note in exported.notes:
        click.echo(note)
    click.echo(f"load it with: {exported.load}")
