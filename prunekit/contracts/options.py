"""Options of plugins: an option is an attrs field with a help text and a check.

Criteria, schedules and tasks are attrs classes. The arguments of their constructors are the settings that a user can
change with ``-o section.key=value`` or in a recipe.
"""

import math
from collections.abc import Sequence
from typing import Any

import attrs


def option(
    default: Any,
    text: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare an option of a plugin class.

        @attrs.define
        class Weighted(prunekit.Criterion):
            strength: float = prunekit.option(0.75, "share of the stronger half", low=0, high=1)

    Args:
        default: the value unless the user sets one.
        text: a one-line description of the option, for tables and help.
        choices: the allowed values; ``None``: any.
        low: the smallest allowed value.
        high: the largest allowed value.

    Returns:
        An ``attrs`` field. Creating the object raises ``ValueError`` for a value outside the limits, infinity or NaN;
        the registry turns that into a ``ConfigError`` that names the option.
    """

    def check(_: object, field: "attrs.Attribute[Any]", value: Any) -> None:
        if value is None and default is None:
            return
        if choices is not None and value not in choices:
            raise ValueError(f"{field.alias} is {value!r}, expected one of {', '.join(map(str, choices))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.alias} is {value!r}, expected a finite number")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            upper = "" if high is None else f" and at most {high}"
            lower = "" if low is None else f" at least {low}"
            raise ValueError(f"{field.alias} is {value!r}, expected{lower}{upper}".replace("expected and", "expected"))

    metadata = {"help": text, "choices": tuple(choices) if choices else (), "low": low, "high": high}
    return attrs.field(default=default, validator=check, metadata=metadata)
