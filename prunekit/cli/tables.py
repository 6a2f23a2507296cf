"""Tables for people, and for pipes: no number is ever cut, however narrow the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def make_table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> "Table":
    """Return an empty table.

    Args:
        title: above it.
        columns: their headings.
        numbers: those of the columns that are aligned right and never wrapped.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        number = column in numbers
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def print_table(table: "Table") -> None:
    """Print a table: in a terminal as wide as it, but never narrower than its numbers; else unwrapped."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    unlimited = console.options.update(max_width=100_000)
    needed = Measurement.get(console, unlimited, table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)
