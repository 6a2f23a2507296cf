"""The command line, one file for each command: parse the options, call one thing, print the result.

A command must not know mathematics. Its module imports only click, so that ``--help`` does not wait for torch. ``main``
turns each ``PrunekitError`` into one line and exit code 2; every other error keeps its traceback.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

import click

from prunekit.distributed.launcher import launched_rank
from prunekit.errors import Interrupted, PrunekitError, RankError

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
# Seconds. When one rank exits, the launcher ends the others within this time. So an error that occurs on all ranks is
# reported by the first, and a rank that has only lost contact waits until the failing rank has reported the cause.
PRECEDENCE = 3

# name -> module and function, and the line that help shows; a command's module loads when it is called.
COMMANDS = {
    "bench": ("bench", "bench", "Compare a pruned network, dense and sparse, in size and speed."),
    "export": ("export", "export", "Write a pruned network as one checked file."),
    "list": ("list_plugins", "list_plugins", "List all plugins and what they contribute."),
    "masks": ("masks", "masks", "Show, check, compare, combine, apply and convert masks."),
    "plan": ("plan", "plan", "Print the layers and stages of a run without training."),
    "run": ("run", "run", "Train, prune and retrain a network; save masks and weights."),
    "show": ("show", "show", "Show the documentation of a criterion, schedule or task."),
    "sweep": ("sweep", "sweep", "Run a grid over seeds; print means and paired differences."),
}


class _Commands(click.Group):
    """A group of commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "run" and launched_rank():
            raise click.UsageError(f"'prunekit {cmd_name}' works in one process; start it without torchrun", ctx)
        blocked = ctx.params.get("no_plugins", ())
        if cmd_name not in COMMANDS:
            return _plugin_command(cmd_name, blocked)
        if blocked:
            raise click.UsageError(f"give --no-plugin behind the command: prunekit {cmd_name} --no-plugin NAME", ctx)
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"prunekit.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])
        formatter.write_paragraph()
        formatter.write_text("Plugins can add commands; 'prunekit list' lists them.")


def _plugin_command(name: str, blocked: Sequence[str]) -> click.Command | None:
    from prunekit.errors import PluginError
    from prunekit.plugins.contributions import commands
    from prunekit.plugins.manager import make_manager

    try:
        found = commands(make_manager(blocked), COMMANDS).get(name)
    except PluginError as error:
        error.add_note(f"{name!r} is not a built-in command; look it up with: prunekit --no-plugin NAME {name}")
        raise
    return found.value if found else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prunekit")
@click.option(
    "--no-plugin", "no_plugins", multiple=True, metavar="NAME", help="Disable a plugin for a plugin's command."
)
def cli(no_plugins: tuple[str, ...]) -> None:
    """Prune neural networks; criteria, schedules, tasks and export formats are plugins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        if launched_rank():
            # On each rank, torch warns about normal conditions and about connections to a failed rank.
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        code: int | None = cli.main(arguments, prog_name="prunekit", standalone_mode=False)
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            _say(_with_notes(stopped))
        return stopped.code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = USER_ERROR
    except click.UsageError as error:
        place = f"; see '{error.ctx.command_path} --help'" if error.ctx else ""
        return _fail(f"{error.format_message().rstrip('.')}{place}", USER_ERROR)
    except RankError as error:
        # The launcher must see the other rank exit first; it then ends this one, unless the cause is unknown.
        time.sleep(2 * PRECEDENCE if error.explained else PRECEDENCE)
        return USER_ERROR if error.explained else _fail(_with_notes(error), USER_ERROR)
    except (PrunekitError, click.ClickException) as error:
        return _fail(_with_notes(error), USER_ERROR)
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    return code or 0


def _with_notes(error: Exception) -> str:
    """Return the message of an error followed by its notes."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(PRECEDENCE)
    _say(f"error: {' '.join(message.split())}")
    return code


def _say(text: str) -> None:
    """Write to standard error; do nothing if its reader has closed it."""
    try:
        click.echo(text, err=True)
    except OSError:
        # Otherwise, Python would try to write the rest once more at exit, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
