"""Options of plugins: an option is an attrs field with a help text and a check.

Criteria, schedules and tasks are attrs classes; what their constructor takes is what a user may set
with ``-o section.key=value`` or in a recipe, and what ``prunekit show`` prints.
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

    Args:
        default: the value where the user says nothing.
        text: one line for ``prunekit show``.
        choices: the only values allowed.
        low: the least value allowed.
        high: the greatest value allowed.

    Returns:
        An ``attrs`` field. A value outside, an infinite one and NaN raise ``ValueError`` when the object is made; the
        registry turns that into a ``ConfigError`` naming the option.
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
