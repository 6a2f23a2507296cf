"""All benchmarks, one table: what, ours, peer, ratio, target, met or not. Run it on a quiet machine."""

import os
import platform

import correlation_statistics
import loop_overhead
import mask_file
import memory
import selection
import startup
import torch
import training_step
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Measure and print, with the load of the machine, since a busy one makes times worthless."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    title = f"{platform.machine()}, {threads} threads, Python {platform.python_version()}, torch {torch.__version__}"
    title = f"{title}, load {load:.1f} before"
    table = Table("what", "ours", "peer", "theirs", "ratio", "target", "met", title=title, title_justify="left")
    for module in (startup, loop_overhead, training_step, memory, mask_file, correlation_statistics, selection):
        for row in module.rows():
            target = f"{row.target:g} {row.unit}" if row.absolute else f"{row.target:g}"
            figures = (
                f"{row.ours:.4g} {row.unit}",
                row.peer,
                f"{row.theirs:.4g} {row.unit}",
                f"{row.ratio:.3g}",
                target,
            )
            table.add_row(row.what, *figures, "yes" if row.met else "no")
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
