"""All benchmarks, or those named, in one table: name, ours, peer, ratio, target, met or not. Run it on an idle machine.

A benchmark is a module here that has ``rows()``. ``python benchmarks/run.py selection`` runs one alone.
"""

import os
import platform
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from measuring import Row
from rich.console import Console
from rich.table import Table

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef rows(" in path.read_text())


def measure(names: list[str]) -> list[Row]:
    """Run benchmarks one after another, and say how long each took."""
    rows: list[Row] = []
    for name in names:
        began = time.perf_counter()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        rows += import_module(name).rows()
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return rows


def make_table(rows: list[Row], title: str) -> Table:
    """Return the table."""
    table = Table("what", "ours", "peer", "theirs", "ratio", "target", "met", title=title, title_justify="left")
    for row in rows:
        target = f"{row.target:.3g} {row.unit}" if row.absolute else f"{row.target:.3g}"
        figures = (f"{row.ours:.4g} {row.unit}", row.peer, f"{row.theirs:.4g} {row.unit}", f"{row.ratio:.3g}", target)
        table.add_row(row.what, *figures, "yes" if row.met else "no")
    return table


def main(names: list[str]) -> None:
    """Measure and print, with the load of the machine, since a busy one makes times worthless."""
    if unknown := set(names) - {*NAMES}:
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))} (known: {', '.join(NAMES)})")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    title = f"{platform.machine()}, {threads} threads, Python {platform.python_version()}, torch {torch.__version__}"
    table = make_table(measure(names or NAMES), f"{title}, load {load:.1f} before")
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
