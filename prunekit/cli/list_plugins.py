"""``prunekit list``: what the installed plugins bring."""

import click


@click.command("list")
@click.option("--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Do without a plugin; repeatable.")
def list_plugins(no_plugins: tuple[str, ...]) -> None:
    """List criteria, schedules and tasks, and the packages that they come from."""
    from prunekit.cli.tables import make_table, print_table
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect

    registry = collect(make_manager(no_plugins))
    for title, entries in (
        ("Criteria", registry.criteria),
        ("Schedules", registry.schedules),
        ("Tasks", registry.tasks),
    ):
        table = make_table(title, "name", "what it does", "package")
        for name, entry in entries.items():
            table.add_row(name, entry.summary, f"{entry.source.package} {entry.source.version}".rstrip())
        if not entries:
            table.add_row("-", "none is installed", "-")
        print_table(table)
