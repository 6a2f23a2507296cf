"""The one decision about who writes a run's files: the first rank does, for all."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from prunekit.distributed.ranks import own_rank

_Parameters = ParamSpec("_Parameters")


def on_first_rank(function: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Make a function do nothing on every rank but the first; it must not communicate with other ranks."""

    @wraps(function)
    def call(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> None:
        if own_rank() == 0:
            function(*arguments, **options)

    return call
