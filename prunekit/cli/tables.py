"""Tables for terminals and pipes, which never truncate a number, however narrow the terminal."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

_UNLIMITED = 100_000  # columns


def make_table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> "Table":
    """Return an empty table.

    Args:
        title: printed above the table.
        columns: headings.
        numbers: headings of the columns that are right-aligned and never wrapped.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def print_table(table: "Table") -> None:
    """Print a table, fitted to the width of a terminal as far as its numbers allow; to a pipe, without wrapping."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=_UNLIMITED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    with console.capture() as capture:
        console.print(table)
    # Rich pads every line with spaces, which would disturb other tools.
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
