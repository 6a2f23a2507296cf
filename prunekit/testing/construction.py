"""Construction of plugins from their options, with failed checks as errors."""

from typing import Any, NoReturn

from prunekit.errors import PrunekitError
from prunekit.plugins.construct import construct
from prunekit.plugins.registry import Kind, contract_problem


def check_class(cls: type, kind: Kind) -> None:
    """Raise an error if a class lacks what its contract requires."""
    problem = contract_problem(cls, kind)
    if problem:
        fail(f"{cls.__name__} is not a {kind}: {problem}")


def make(cls: type, options: dict[str, Any], kind: Kind) -> Any:
    """Return an object of a plugin's class; errors of its options are failed checks."""
    try:
        return construct(cls, options, kind, f"{kind} {cls.__name__}")
    except PrunekitError as error:
        fail(str(error), error)


def fail(message: str, cause: Exception | None = None) -> NoReturn:
    """Fail a check with a sentence that says what is wrong."""
    raise AssertionError(message) from cause
