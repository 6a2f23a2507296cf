"""The result of evaluating a trained network on a task."""

from collections.abc import Mapping
from typing import Any

import attrs


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    """Return plain numbers: a forgotten ``.item()`` would fail where they are written."""
    return {name: float(value) for name, value in values.items()}


@attrs.frozen
class Evaluation:
    """The figures of a trained network by name, one of them primary.

    >>> evaluation = Evaluation("accuracy", {"accuracy": 0.97, "loss": 0.11}, {"accuracy": 0.002})
    >>> evaluation.primary, evaluation.value
    ('accuracy', 0.97)

    Attributes:
        primary: the name of the figure that matters most, a key of ``metrics``; the figure itself is ``value``.
        metrics: metric name -> figure, as a float: fractions in [0, 1], not percent, where the metric is a rate.
            Tables show the first ones.
        standard_errors: metric name -> standard error of the figure, in its unit; only metrics whose error is known.
    """

    primary: str
    metrics: Mapping[str, float] = attrs.field(converter=_floats)
    standard_errors: Mapping[str, float] = attrs.field(factory=dict, converter=_floats)

    @property
    def value(self) -> float:
        """The primary figure: ``metrics[primary]``.

        Raises:
            KeyError: ``primary`` names none of the metrics.
        """
        return self.metrics[self.primary]
