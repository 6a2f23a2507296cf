"""The errors a user can cause and mend. Everything else is a bug and keeps its traceback."""

from collections.abc import Iterable


class PrunekitError(Exception):
    """Something the user can put right. The message is one line: what, found, expected, next step."""


class PluginError(PrunekitError):
    """A plugin is broken, unknown, named twice or does not keep its contract."""


class ConfigError(PrunekitError):
    """A recipe, an option or a plan asks for something that cannot be."""


class DataError(PrunekitError):
    """The data a task was pointed at is missing, unreadable or too little."""


class MaskError(PrunekitError):
    """A mask does not fit its weight, or a mask file is not one."""


class CheckpointError(PrunekitError):
    """A checkpoint or a run folder cannot be read, written or continued."""


class ResumeError(CheckpointError):
    """A run cannot go on from what is in its folder; to try again would end the same way."""


class ExportError(PrunekitError):
    """A network cannot be written in some format, or what was written gives other outputs."""


class TrainingError(PrunekitError):
    """Training cannot go on, for example because the loss is no longer a number."""


class NotFiniteError(TrainingError):
    """A loss, a gradient or a weight is no number; the same steps again would end the same way."""


class Interrupted(PrunekitError):  # noqa: N818 - nothing is wrong
    """The run was asked to stop, and did.

    Attributes:
        code: the exit code that shells expect: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RankError(PrunekitError):
    """The other processes of a distributed run cannot be reached any more.

    Attributes:
        explained: another process has told the user why, so this one has nothing to add.
    """

    def __init__(self, message: str, *, explained: bool) -> None:
        super().__init__(message)
        self.explained = explained


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` or, with nothing near, `` (known: a, b)``.

    Args:
        name: what the user wrote.
        known: what would have been accepted.
    """
    import difflib  # only errors need it, and help is not to wait for it

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if names else " (none is known)"
