"""Images a second of the full-size network on a GPU: dense and masked, with and without compiling, against a bare loop.

``python benchmarks/gpu_training.py --device cuda``; the table of ``run.py`` is for processors.
"""

import click
import torch
from loop_overhead import MASKED_TARGET, TARGET, PaperNetwork, measure
from rich.console import Console
from rich.table import Table

BATCH = 85 * 3  # of the preset
EPOCHS = 6


class TwelveBatches(PaperNetwork):
    """An epoch that takes a GPU a while."""

    name = "paper-network-12"
    count = 12


TASK = {"name": f"{__file__}:TwelveBatches", "preset": "paper"}


@click.command()
@click.option("--device", default="cuda", help="What pick_device takes: cuda, cuda:1, cpu.")
@click.option("--precision", default="bf16", help="fp32, bf16 or fp16.")
@click.option("--fused", is_flag=True, help="Take the optimiser's step in one kernel.")
def main(device: str, precision: str, fused: bool) -> None:
    """Measure and print."""
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    title = f"{where}, torch {torch.__version__}, {precision}{', fused' if fused else ''}, batch {BATCH}"
    table = Table("", "images/s", "bare loop, dense", "ratio of times", "target", title=title, title_justify="left")
    for compiled in (False, True):
        for masked in (False, True):
            settings = {"precision": precision, "fused": fused, "compile": compiled}
            ours, theirs = measure(TASK, EPOCHS, masked=masked, device=device, settings=settings)
            what = f"{'masked' if masked else 'dense'}{', compiled' if compiled else ''}"
            figures = (f"{BATCH / time * 1e3:,.0f}" for time in (ours, theirs))
            table.add_row(what, *figures, f"{ours / theirs:.3f}", f"{MASKED_TARGET if masked else TARGET}")
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
