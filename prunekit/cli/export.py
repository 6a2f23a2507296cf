"""``prunekit export``: write a pruned network as one file."""

from typing import Any

import click

from prunekit.cli.network_options import pruned_options, read_pruned
from prunekit.deployment.export import MODULES


@click.command()
@pruned_options
@click.option("--to", required=True, metavar="FORMAT", help=f"Format: {', '.join(MODULES)}, or a plugin's.")
@click.option("-o", "--out", required=True, type=click.Path(), help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def export(to: str, out: str, force: bool, **flags: Any) -> None:
    """Write a pruned network as one file, checked against the masked network on sample inputs.

    RUN_OR_MODEL is a run folder, or file.py:function or module:Class, which is called without arguments and returns
    the network.
    """
    from prunekit.deployment.export.writing import check_free, find_format
    from prunekit.deployment.export.writing import export as write
    from prunekit.plugins.contributions import export_formats
    from prunekit.plugins.manager import make_manager

    check_free(out, force=force)
    formats = export_formats(make_manager(flags["no_plugins"]))
    find_format(to, formats)
    pruned = read_pruned(**flags)
    click.echo(str(pruned))
    exported = write(pruned, to, out, force=force, formats=formats)
    share = exported.size / exported.dense_size
    click.echo(f"{exported.path}: {exported.size:,} bytes, {share:.4g} of the dense file's {exported.dense_size:,}")
    click.echo(f"largest output difference from the masked network: {exported.error:.3g}")
    for note in exported.notes:
        click.echo(note)
    click.echo(f"load it with: {exported.load}")
