"""``prunekit show``: show the documentation of one criterion, schedule or task."""

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prunekit.plugins.registry import Registered


@click.command()
@click.argument("kind", type=click.Choice(["criterion", "schedule", "task"]))
@click.argument("name")
@click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Plugin to disable; repeatable.")
def show(kind: Any, name: str, no_plugins: tuple[str, ...]) -> None:
    """Show the documentation, options and source file of one criterion, schedule or task."""
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect

    _print_entry(kind, name, collect(make_manager(no_plugins)).entry(kind, name))


def _print_entry(kind: str, name: str, entry: "Registered[Any]") -> None:
    import inspect

    from prunekit.cli.tables import make_table, print_table

    source = entry.source
    click.echo(f"{kind} {name}\n\n{inspect.getdoc(entry.cls) or ''}\n")
    click.echo(f"plugin:  {source.plugin}\npackage: {f'{source.package} {source.version}'.rstrip()}")
    click.echo(f"class:   {entry.cls.__module__}.{entry.cls.__qualname__}")
    click.echo(f"file:    {inspect.getsourcefile(entry.cls)}\n")
    if not entry.options:
        click.echo("No options.")
        return
    table = make_table(f"Options: -o {kind}.NAME=VALUE", "name", "type", "default", "meaning")
    for option in entry.options.values():
        table.add_row(option.name, option.expected, option.default_text, option.meaning)
    print_table(table)
