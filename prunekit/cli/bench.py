"""``prunekit bench``: is the pruned network smaller and faster, and if not, what would make it so."""

import json
from typing import Any

import click

from prunekit.cli.network_options import pruned_options, read_pruned


@click.command()
@pruned_options
@click.option(
    "--batch-sizes",
    metavar="NUMBERS",
    default="1 8 32",
    show_default=True,
    help="Samples of a forward pass, one measurement each.",
)
@click.option("--threads", metavar="NUMBER", help="Threads of the CPU; by default those that torch takes.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON: bytes, seconds.")
def bench(batch_sizes: str, threads: str | None, as_json: bool, **flags: Any) -> None:
    """Measure a pruned network, dense and in every form in which it can run sparse: weights, bytes, time.

    RUN_OR_MODEL is a run folder, or file.py:function or module:Class, which called without arguments gives the network.
    """
    import attrs
    import torch

    from prunekit.cli.bench_table import print_bench
    from prunekit.deployment.bench.running import bench as measure

    sizes = [_number("--batch-sizes", text) for text in batch_sizes.replace(",", " ").split()]
    if threads is not None:
        torch.set_num_threads(_number("--threads", threads))
    found = measure(read_pruned(**flags), sizes, lambda line: click.echo(f"{line} ...", err=True))
    if as_json:
        # Single turns say nothing that quartiles do not.
        content = attrs.asdict(found, filter=lambda attribute, _: attribute.name != "turns")
        click.echo(json.dumps(content, indent=2))
    else:
        print_bench(found)


def _number(option: str, text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        ConfigError: it is none.
    """
    from prunekit.errors import ConfigError

    most = 6  # digits
    if not (text.isascii() and text.isdecimal() and int(text) > 0 and len(text) <= most):
        raise ConfigError(f"{option} has {text!r}, expected whole numbers from 1 to 999999")
    return int(text)
