"""``prunekit run``: train, prune, re-train, and say what came of it."""

import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunekit.cli.options import config_options, read_config

if TYPE_CHECKING:
    from signal import Signals

    from prunekit.runs.config import RunConfig


@click.command()
@config_options
@click.option("--resume", metavar="FOLDER", help="Go on with the run in FOLDER; with no other option but --no-plugin.")
@click.option("--force", is_flag=True, help="Write over the run that is in the run folder.")
@click.option("--config", "asked", is_flag=True, help="Print the recipe that starts this same run, and stop.")
def run(resume: str | None, force: bool, asked: bool, **flags: Any) -> None:
    """Train a network, prune it by a plan, re-train it, and save masks and weights."""
    from prunekit.distributed.process_group import process_group
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect
    from prunekit.runs.absolute_paths import with_absolute_paths
    from prunekit.runs.recipes import to_toml

    config = _resumed_config(resume, force, flags) if resume is not None else read_config(**flags)
    if asked:
        click.echo(to_toml(with_absolute_paths(config, collect(make_manager(config.no_plugins)))), nl=False)
        return
    with process_group(config.device):
        _run(config, resume, force=force)  # whatever it holds is gone when the group is left


def _run(config: "RunConfig", resume: str | None, *, force: bool) -> None:
    """Do it, as one process of those that do."""
    from prunekit.cli.run_table import print_files, print_result
    from prunekit.distributed.ranks import own_rank, text_from_first
    from prunekit.files.atomic import held_alone
    from prunekit.plugins.manager import make_manager
    from prunekit.plugins.registry import collect
    from prunekit.runs.absolute_paths import with_absolute_paths
    from prunekit.runs.engine import run as run_engine
    from prunekit.runs.folder import RunFolder, check_new_run, check_resumable
    from prunekit.runs.interruption import Interruption
    from prunekit.runs.preparation import prepare

    folder = RunFolder(Path(text_from_first(str(_out(config))) if resume is None else resume))
    manager = make_manager(config.no_plugins)
    registry = collect(manager)
    prepared = prepare(config, manager, registry, resumed=resume is not None)
    if resume is not None:
        check_resumable(folder)
    else:
        check_new_run(folder, force=force)
    interruption, speaks = Interruption(), own_rank() == 0
    with (
        held_alone(folder.path) if speaks else nullcontext(),
        interruption.listening(_report_request if speaks else _ignore_request),
    ):
        finished = run_engine(
            with_absolute_paths(config, registry),
            prepared,
            manager.hook,
            folder,
            resume=resume is not None,
            force=force,
            interruption=interruption,
        )
    if speaks:
        print_result(finished)
        print_files(folder)


def _report_request(request: "Signals") -> None:
    """Say that a request to stop was heard; the program may be in the middle of printing, so past its buffers."""
    text = f"\n{request.name}: stopping after this step, with a checkpoint; Ctrl-C (once more) stops at once\n"
    with suppress(OSError):  # a pipe whose reader the same Ctrl-C has ended
        os.write(sys.stderr.fileno(), text.encode())


def _ignore_request(_: "Signals") -> None:
    """Leave it to the first rank."""


def _resumed_config(resume: str, force: bool, flags: dict[str, Any]) -> "RunConfig":
    """Return the configuration of the run in a folder; a changed one would not be that run any more."""
    from prunekit.errors import ConfigError
    from prunekit.runs.config import is_utf8
    from prunekit.runs.folder import RunFolder, check_resumable
    from prunekit.runs.recipes import build_config, read_recipe

    if not resume or not is_utf8(resume):
        raise ConfigError(f"--resume is {resume!r}, expected the folder of a run, with a name in UTF-8")
    everything = {**flags, "force": force}.items()
    given = [name for name, value in everything if value not in (None, False, ()) and name != "no_plugins"]
    if given:
        raise ConfigError(f"--resume goes on with the run as it was; leave out: {', '.join(given)}")
    folder = RunFolder(Path(resume))
    check_resumable(folder)
    blocked = list(flags["no_plugins"]) or None
    return build_config(read_recipe(folder.config), {"no_plugins": blocked})


def _out(config: "RunConfig") -> Path:
    from prunekit.runs.folder import free_folder

    if config.out is not None:
        return Path(config.out)
    task = config.task.name.rpartition(":")[2]
    return free_folder(Path("runs"), f"{task}-{config.criterion.name}-seed{config.seed}")
