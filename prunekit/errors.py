"""Errors that a user can fix. Every other exception is a bug and keeps its traceback."""

from collections.abc import Iterable


class PrunekitError(Exception):
    """A user can fix the cause. The message is one line: what was given, what was expected, the next step."""


class PluginError(PrunekitError):
    """A plugin is broken, unknown, registered twice or violates its contract.

    Attributes:
        plugin: the name of the plugin to disable, or "".
    """

    plugin = ""


class ConfigError(PrunekitError):
    """A recipe, an option or a plan requests something impossible."""


class DataError(PrunekitError):
    """The data of a task is missing, unreadable or insufficient."""


class MaskError(PrunekitError):
    """A mask does not fit its weight, or a file is not a valid mask file."""


class CheckpointError(PrunekitError):
    """A checkpoint or a run folder cannot be read, written or resumed."""


class ResumeError(CheckpointError):
    """The run cannot be resumed from its folder, and retrying will not help."""


class ExportError(PrunekitError):
    """A network cannot be exported, or the export computes different outputs."""


class TrainingError(PrunekitError):
    """Training cannot continue, for example because the loss is NaN."""


class NotFiniteError(TrainingError):
    """A loss, gradient or weight is NaN or infinite; repeating the steps would fail the same way."""


class Interrupted(PrunekitError):  # noqa: N818 - not an error
    """The run stopped on request.

    Attributes:
        code: the exit code that shells expect: 128 + the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RankError(PrunekitError):
    """Contact with another rank of a distributed run was lost.

    Attributes:
        explained: another rank has reported the cause, so this one need not report anything.
    """

    def __init__(self, message: str, *, explained: bool) -> None:
        super().__init__(message)
        self.explained = explained


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: a similar known name, or all known names if none is similar.

    >>> nearest("corelation", ["correlation", "magnitude"])
    " (did you mean 'correlation'?)"
    >>> nearest("zzz", ["b", "a"])
    ' (known: a, b)'

    Args:
        name: the name that the user wrote.
        known: the names that would be accepted.
    """
    import difflib  # only needed for errors, and it would slow down --help

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else " (none is known)"
