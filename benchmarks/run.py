"""All benchmarks, one table: what, ours, peer, ratio, target, met or not. Run it on a quiet machine."""

import platform

import startup
import torch
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    threads = torch.get_num_threads()
    title = f"{platform.machine()}, {threads} threads, Python {platform.python_version()}, torch {torch.__version__}"
    table = Table("what", "ours", "peer", "theirs", "ratio", "target", "met", title=title, title_justify="left")
    for module in (startup,):
        for row in module.rows():
            target = f"{row.target * 1e3:g} ms" if row.absolute else f"{row.target:g}"
            figures = (f"{row.ours * 1e3:.4g} ms", row.peer, f"{row.theirs * 1e3:.4g} ms", f"{row.ratio:.3g}", target)
            table.add_row(row.what, *figures, "yes" if row.met else "no")
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
