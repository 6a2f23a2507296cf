"""Tables for people, and for pipes: no number is ever cut, however narrow the terminal."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

_UNLIMITED = 100_000  # columns


def make_table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> "Table":
    """Return an empty table.

    Args:
        title: above it.
        columns: their headings.
        numbers: those of the columns that are aligned right and never wrapped.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def print_table(table: "Table") -> None:
    """Print a table: in a terminal as wide as that, but never narrower than its numbers; else unwrapped."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=_UNLIMITED), table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    with console.capture() as capture:
        console.print(table)
    # Rich fills every line up with spaces, which only get in the way of other tools.
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
