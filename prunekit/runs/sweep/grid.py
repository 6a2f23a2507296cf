"""Read the grid of a sweep from a recipe with a section [sweep].

It must not know what the names in the grid stand for.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

import attrs

from prunekit.errors import ConfigError
from prunekit.layers.densities import RULES
from prunekit.plugins.construct import convert_options
from prunekit.runs.config import Choice, RunConfig
from prunekit.runs.recipes import build_config, to_choice

_AXES = {"criteria": "criterion", "schedules": "schedule"}
_NAMED = {"structures": "structures or densities", "allocations": "distributions or patterns"}  # what users write
GLOBAL: Literal["global"] = "global"


@attrs.frozen
class Allocation:
    """How a density is distributed over layers and weights; ``None``: as in the recipe.

    Attributes:
        distribution: one of ``prunekit.layers.densities.RULES``, or "global": all weights of the network are ranked
            together.
        pattern: as text; "none": unstructured.
    """

    distribution: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.distribution, self.pattern)))

    def changes(self, base: RunConfig) -> dict[str, Any]:
        """Return the fields of a configuration that it changes, with their values."""
        changed: dict[str, Any] = {}
        if self.distribution is not None:
            together = self.distribution == GLOBAL
            changed |= {
                "distribution": None if together else self.distribution,
                "scope": GLOBAL if together else base.scope,
            }
        if self.pattern is not None:
            changed["pattern"] = None if self.pattern == "none" else self.pattern
        return changed


@attrs.frozen
class Grid:
    """The axes of a sweep; the other entries of an axis are compared with its first.

    Attributes:
        base: the configuration that all cells share.
        structures: "LAYER=DENSITY ...", or one density for all layers; ``None``: as in ``base``.
        allocations: how densities are distributed over layers and weights.
        criteria: names with options.
        schedules: names with options.
        training: settings that differ from those of ``base``.
        metrics: the metrics to compare, the most informative one first; empty: all metrics of the task.
        kept_correlation: whether to measure the mean absolute correlation of the kept connections.
    """

    base: RunConfig
    structures: tuple[str | float | None, ...]
    allocations: tuple[Allocation, ...]
    criteria: tuple[Choice, ...]
    schedules: tuple[Choice, ...]
    training: tuple[Mapping[str, Any], ...]
    metrics: tuple[str, ...]
    kept_correlation: bool


@attrs.frozen
class _Section:
    """The keys of [sweep] that do not name plugins."""

    structures: list[str] | None = None
    densities: list[float] | None = None
    distributions: list[str] | None = None
    patterns: list[str] | None = None
    training: list[dict[str, Any]] | None = None
    metrics: list[str] | None = None
    kept_correlation: bool = False


def read_grid(recipe: Mapping[str, Any], flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Grid:
    """Read a recipe with a section [sweep]; an axis that is left out has the recipe's own value as its only entry.

        grid = read_grid(read_recipe("examples/sweep.toml"), {"seed": 3})

    Args:
        recipe: as ``recipes.read_recipe`` returns it.
        flags: see ``recipes.build_config``.
        overrides: see ``recipes.build_config``.

    Raises:
        ConfigError: no section [sweep], an unknown key, a repeated entry, or a value that a run would refuse.
    """
    section = recipe.get("sweep")
    if not isinstance(section, Mapping):
        raise ConfigError("the recipe has no section [sweep]; add one with structures, criteria or schedules")
    base = build_config({key: value for key, value in recipe.items() if key != "sweep"}, flags, overrides)
    plain = {key: value for key, value in section.items() if key not in _AXES}
    settings = _Section(**convert_options(_Section, plain, "sweep", "section [sweep]"))
    _check_section(section, settings, base)
    patterns: Sequence[str | None] = settings.patterns or (None,)
    distributions: Sequence[str | None] = settings.distributions or (None,)
    grid = Grid(
        base=base,
        structures=tuple(settings.structures or settings.densities or [None]),
        allocations=tuple(Allocation(rule, pattern) for pattern, rule in product(patterns, distributions)),
        criteria=_choices(section, "criteria", base.criterion),
        schedules=_choices(section, "schedules", base.schedule),
        training=tuple(settings.training or ({},)),
        metrics=tuple(settings.metrics or ()),
        kept_correlation=settings.kept_correlation,
    )
    for axis in ("structures", "allocations", "criteria", "schedules", "training", "metrics"):
        values = getattr(grid, axis)
        if any(value in values[:index] for index, value in enumerate(values)):
            entries = ", ".join(map(label, values))
            raise ConfigError(f"sweep.{_NAMED.get(axis, axis)} contains an entry twice: {entries}; remove one of them")
    return grid


def _check_section(section: Mapping[str, Any], settings: _Section, base: RunConfig) -> None:
    """Refuse keys of [sweep] that contradict each other or the rest of the recipe."""
    if base.freeze_masks or base.dense:
        raise ConfigError("a sweep prunes, and adds its own dense controls; leave out freeze_masks and dense")
    for axis, kind in _AXES.items():
        chosen: Choice = getattr(base, kind)
        if axis in section and chosen.options:
            option = next(iter(chosen.options))
            raise ConfigError(f"{kind}.{option} is set, but sweep.{axis} lists {axis} with their options; set it there")
    if settings.structures and settings.densities:
        raise ConfigError("both sweep.structures and sweep.densities are given; use one of them")
    for distribution in settings.distributions or ():
        if distribution not in (*RULES, GLOBAL):
            raise ConfigError(
                f"sweep.distributions contains {distribution!r}, expected one of {', '.join((*RULES, GLOBAL))}"
            )


def _choices(section: Mapping[str, Any], axis: str, default: Choice) -> tuple[Choice, ...]:
    entries = section.get(axis, [])
    if not isinstance(entries, list):
        raise ConfigError(f"sweep.{axis} is {entries!r}, expected a list of names or of tables with a name")
    tables = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    for table in tables:
        if not isinstance(table, Mapping) or "name" not in table:
            raise ConfigError(f'sweep.{axis} contains {table!r}, expected "NAME" or {{name = "NAME", ...}}')
    return tuple(to_choice(_AXES[axis], table) for table in tables) or (default,)


def label(value: str | float | Choice | Allocation | Mapping[str, Any] | None) -> str:
    """Return the text that stands for an entry of an axis in tables and messages.

    >>> label(Choice("correlation", {"mode": "highest"}))
    'correlation (mode=highest)'
    """
    if value is None or isinstance(value, str | float | Allocation):
        return str(value)
    settings = value.options if isinstance(value, Choice) else value
    text = ", ".join(f"{key}={setting}" for key, setting in settings.items())
    if isinstance(value, Choice):
        return f"{value.name} ({text})" if text else value.name
    return text
