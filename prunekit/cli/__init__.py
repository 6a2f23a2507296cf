"""The command line, one file for each command: parse the options, call one thing, print the result.

A command must not know mathematics, and imports only click when it loads, so that ``--help`` does not wait for torch.
``main`` turns each ``PrunekitError`` into one line and exit code 2; every other error keeps its traceback.
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
# Of several processes the one that speaks first ends, and the launcher ends the others, within so many seconds. So an
# error that all meet is told by the first rank, and who has only lost another one waits until that one has spoken.
PRECEDENCE = 3

# name -> module and function, and the line that help shows; a command's module loads when it is called.
COMMANDS = {
    "bench": ("bench", "bench", "Measure a pruned network: size, time, dense and sparse."),
    "export": ("export", "export", "Write a pruned network as one file; proved first."),
    "list": ("list_plugins", "list_plugins", "List all plugins and what they bring."),
    "masks": ("masks", "masks", "Show, compare, combine and apply mask files."),
    "plan": ("plan", "plan", "Print layers and stages of a run; train nothing."),
    "run": ("run", "run", "Train, prune, re-train; save masks and weights."),
    "show": ("show", "show", "Show one of them: text, options, source."),
    "sweep": ("sweep", "sweep", "Run a grid over seeds; print means and paired differences."),
}


class _Commands(click.Group):
    """The commands, none of which is imported before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return _plugin_command(cmd_name)
        if cmd_name != "run" and launched_rank():
            raise click.UsageError(f"'prunekit {cmd_name}' works in one process; start it without torchrun", ctx)
        module, function, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"prunekit.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])
        formatter.write_paragraph()
        formatter.write_text("Plugins may add commands; 'prunekit list' shows them.")


def _plugin_command(name: str) -> click.Command | None:
    from prunekit.plugins.contributions import commands
    from prunekit.plugins.manager import make_manager

    found = commands(make_manager(), COMMANDS).get(name)
    return found.value if found else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prunekit")
def cli() -> None:
    """Prune neural networks with criteria, schedules and tasks that are plugins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        if launched_rank():
            # From each rank, torch warns of what is as it should be, and of connections to a rank that has failed.
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
        # The launcher is to see the other one end first, and ends this one if it has nothing to say.
        time.sleep(2 * PRECEDENCE if error.explained else PRECEDENCE)
        return USER_ERROR if error.explained else _fail(_with_notes(error), USER_ERROR)
    except (PrunekitError, click.ClickException) as error:
        return _fail(_with_notes(error), USER_ERROR)
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    return code or 0


def _with_notes(error: Exception) -> str:
    """Return the message with what was noted on the way up."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(PRECEDENCE)
    _say(f"error: {' '.join(message.split())}")
    return code


def _say(text: str) -> None:
    """Write to standard error, where somebody still reads it."""
    try:
        click.echo(text, err=True)
    except OSError:
        # What could not be written would be tried once more at Python's end, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
