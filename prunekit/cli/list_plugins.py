"""``prunekit list``: list what the installed plugins contribute."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prunekit.plugins.manager import PluginManager, Source


@click.command("list")
@click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Plugin to disable; repeatable.")
def list_plugins(no_plugins: tuple[str, ...]) -> None:
    """List criteria, schedules, tasks, export formats and commands, and the plugins that contribute them."""
    from prunekit.cli import COMMANDS
    from prunekit.plugins.contributions import brought, commands, export_formats
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect

    manager = make_manager(no_plugins)
    registry = collect(manager)
    formats, added = export_formats(manager), commands(manager, COMMANDS)
    for title, entries in (
        ("Criteria", registry.criteria),
        ("Schedules", registry.schedules),
        ("Tasks", registry.tasks),
    ):
        _print(title, ((name, entry.summary, entry.source) for name, entry in entries.items()))
    _print("Export formats", ((name, entry.value.summary, entry.source) for name, entry in formats.items()))
    if added:
        texts = {name: entry.value.get_short_help_str(80) for name, entry in added.items()}
        _print("Commands of plugins", ((name, texts[name], entry.source) for name, entry in added.items()))
    named = {
        "criterion": registry.criteria,
        "schedule": registry.schedules,
        "task": registry.tasks,
        "format": formats,
        "command": added,
    }
    _print_plugins(manager, brought(manager, named))


def _print(title: str, rows: "Iterable[tuple[str, str, Source]]") -> None:
    from prunekit.cli.tables import make_table, print_table

    table = make_table(title, "name", "description", "package")
    for name, text, source in rows:
        table.add_row(name, text, f"{source.package} {source.version}".rstrip())
    if not table.row_count:
        table.add_row("-", "none installed", "-")
    print_table(table)


def _print_plugins(manager: "PluginManager", texts: dict[str, list[str]]) -> None:
    """Print what each plugin contributes, third-party plugins first."""
    from prunekit.cli.tables import make_table, print_table

    table = make_table("Plugins", "plugin", "contributions", "package")
    for plugin, parts in sorted(texts.items(), key=lambda item: manager.source(item[0]).package == "prunekit"):
        source = manager.source(plugin)
        table.add_row(plugin, "; ".join(parts), f"{source.package} {source.version}".rstrip())
    print_table(table)
    click.echo("Disable a plugin with --no-plugin NAME, in any command that loads plugins.")
