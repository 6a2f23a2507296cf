"""The command line. The commands parse, call one thing and print; all work is importable elsewhere.

Here is the one boundary that turns errors a user can mend into one line and exit code 2; everything
else keeps its traceback. Modules of commands import only click when they load: ``--help`` must not
wait for torch.
"""

from collections.abc import Sequence

import click

from prunekit.cli.list_plugins import list_plugins
from prunekit.cli.masks import masks
from prunekit.cli.plan import plan
from prunekit.cli.run import run
from prunekit.cli.show import show
from prunekit.errors import PrunekitError

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="prunekit")
def cli() -> None:
    """Prune neural networks with criteria, schedules and tasks that are plugins."""


for command in (run, plan, list_plugins, show, masks):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        code: int | None = cli.main(arguments, prog_name="prunekit", standalone_mode=False)
    except click.UsageError as error:
        place = f"; see '{error.ctx.command_path} --help'" if error.ctx else ""
        return _fail(f"{error.format_message().rstrip('.')}{place}", USER_ERROR)
    except (PrunekitError, click.ClickException) as error:
        return _fail(str(error), USER_ERROR)
    except click.Abort:
        return _fail("interrupted", INTERRUPTED)
    return code or 0


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
