"""``prunekit bench``: compare a pruned network with the dense network in size and speed."""

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
    help="Batch sizes to measure.",
)
@click.option("--threads", metavar="NUMBER", help="CPU threads; by default torch's own number.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON, in bytes and seconds.")
def bench(batch_sizes: str, threads: str | None, as_json: bool, **flags: Any) -> None:
    """Compare weights, size and speed of a pruned network, dense and in every form in which it can run sparse.

    RUN_OR_MODEL is a run folder, or file.py:function or module:Class, which is called without arguments and returns
    the network.
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
        # The quartiles summarise the single turns.
        content = attrs.asdict(found, filter=lambda attribute, _: attribute.name != "turns")
        click.echo(json.dumps(content, indent=2))
    else:
        print_bench(found)


def _number(option: str, text: str) -> int:
    """Return a whole number from 1 to 999,999.

    Raises:
        ConfigError: for any other text.
    """
    from prunekit.errors import ConfigError

    most = 6  # digits
    if not (text.isascii() and text.isdecimal() and int(text) > 0 and len(text) <= most):
        raise ConfigError(f"{option} has {text!r}, expected whole numbers from 1 to 999999")
    return int(text)
