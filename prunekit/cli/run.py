"""``prunekit run``: train, prune, retrain, and print the results."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunekit.cli.options import config_options, read_config

if TYPE_CHECKING:
    from signal import Signals

    from prunekit.runs.config import RunConfig


@click.command()
@config_options
@click.option(
    "--resume", metavar="FOLDER", help="Resume the run in FOLDER; the only other option allowed is --no-plugin."
)
@click.option("--force", is_flag=True, help="Overwrite the run in the run folder.")
@click.option("--config", "show_config", is_flag=True, help="Print the recipe of this run and exit.")
def run(resume: str | None, force: bool, show_config: bool, **flags: Any) -> None:
    """Train a network, prune it stage by stage, retrain it, and save masks and weights.

    RECIPE is a TOML file with the settings of a run; options override it.
    """
    from prunekit.cli.run_table import print_result
    from prunekit.runs.entry import carry_out, to_recipe

    config = read_config(**flags) if resume is None else _resumed(resume, flags | {"force": force})
    if show_config:
        click.echo(to_recipe(config), nl=False)
        return
    finished = carry_out(config, resume=None if resume is None else Path(resume), force=force, report=_report_request)
    if finished is not None:
        print_result(finished)


def _report_request(request: "Signals") -> None:
    """Confirm a request to stop, past Python's buffers: the signal may have come in the middle of printing."""
    text = f"\n{request.name}: stopping after this step and saving a checkpoint; press Ctrl-C again to stop at once\n"
    with suppress(OSError):  # a pipe whose reader the same Ctrl-C has ended
        os.write(sys.stderr.fileno(), text.encode())


def _resumed(resume: str, flags: dict[str, Any]) -> "RunConfig":
    """Return the configuration of the run to resume; options that would change the run are refused."""
    from prunekit.errors import ConfigError
    from prunekit.runs.config import is_utf8
    from prunekit.runs.entry import resumed_config

    if not resume or not is_utf8(resume):
        raise ConfigError(f"--resume is {resume!r}, expected a run folder whose name is valid UTF-8")
    given = [name for name, value in flags.items() if value not in (None, False, ()) and name != "no_plugins"]
    if given:
        options = ", ".join(map(_spelled, given))
        raise ConfigError(f"--resume takes all settings from the run folder; leave out: {options}")
    return resumed_config(Path(resume), flags["no_plugins"])


def _spelled(parameter: str) -> str:
    return {"recipe": "the recipe", "overrides": "-o"}.get(parameter, f"--{parameter.replace('_', '-')}")
