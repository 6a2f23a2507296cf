"""What a sweep asks for: a recipe with a section [sweep] becomes cells.

A cell is one row of the table: a structure, a criterion, a schedule and training settings. This module plans; it must
not train, and reads no data beyond what the task checks in its ``setup``.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal

import attrs

from prunekit.contracts.schedule import Plan
from prunekit.errors import ConfigError
from prunekit.layers.densities import RULES
from prunekit.plugins.construct import convert_options
from prunekit.plugins.manager import PluginManager
from prunekit.plugins.registry import Registry
from prunekit.runs.config import Choice, RunConfig
from prunekit.runs.preparation import PreparedRun, prepare
from prunekit.runs.recipes import build_config, to_choice

_AXES = {"criteria": "criterion", "schedules": "schedule"}
_NAMED = {"structures": "structures or densities", "allocations": "distributions or patterns"}  # what users write
GLOBAL: Literal["global"] = "global"


@attrs.frozen
class Allocation:
    """How a density becomes masks; ``None``: as the recipe has it.

    Attributes:
        distribution: one of ``distributions.RULES``, or "global": the ranking of all layers shares the density out.
        pattern: as text; "none": unstructured.
    """

    distribution: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.distribution, self.pattern)))

    def changes(self, base: RunConfig) -> dict[str, Any]:
        """Return what it changes of a configuration."""
        changed: dict[str, Any] = {}
        if self.distribution is not None:
            ranked = self.distribution == GLOBAL
            changed |= {
                "distribution": None if ranked else self.distribution,
                "scope": GLOBAL if ranked else base.scope,
            }
        if self.pattern is not None:
            changed["pattern"] = None if self.pattern == "none" else self.pattern
        return changed


@attrs.frozen
class Sweep:
    """A grid; the first entry of each axis is what the others are compared with.

    Attributes:
        base: what all cells have in common.
        structures: "LAYER=DENSITY ..." each, or one density of all layers; ``None``: as in ``base``.
        allocations: how densities become masks.
        criteria: names with options.
        schedules: names with options.
        training: settings that differ from those of ``base``.
        metrics: the figures to compare, the most telling one first.
        kept_correlation: also measure the mean absolute correlation of the connections that the last pruning kept.
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
    """The plain keys of [sweep]."""

    structures: list[str] | None = None
    densities: list[float] | None = None
    distributions: list[str] | None = None
    patterns: list[str] | None = None
    training: list[dict[str, Any]] | None = None
    metrics: list[str] | None = None
    kept_correlation: bool = False


def read_sweep(
    recipe: Mapping[str, Any], flags: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Sweep:
    """Read a recipe with a section [sweep]; an axis that it leaves out has the recipe's own single value.

    Args:
        recipe: as ``recipes.read_recipe`` returns it.
        flags: as for ``recipes.build_config``.
        overrides: likewise.

    Raises:
        ConfigError: no section [sweep], an unknown key, an empty or repeated entry, or what a run would refuse.
    """
    section = recipe.get("sweep")
    if not isinstance(section, Mapping):
        raise ConfigError("the recipe has no section [sweep], expected one with structures, criteria or schedules")
    base = build_config({key: value for key, value in recipe.items() if key != "sweep"}, flags, overrides)
    plain = {key: value for key, value in section.items() if key not in _AXES}
    settings = _Section(**convert_options(_Section, plain, "sweep", "section [sweep]"))
    if base.freeze_masks or base.dense:
        raise ConfigError("a sweep prunes and makes its own dense controls; leave out freeze_masks and dense")
    for axis, kind in _AXES.items():
        chosen: Choice = getattr(base, kind)
        if axis in section and chosen.options:
            option = next(iter(chosen.options))
            raise ConfigError(
                f"{kind}.{option} is set, but sweep.{axis} brings {axis} with options of their own; set it there"
            )
    if settings.structures and settings.densities:
        raise ConfigError("both sweep.structures and sweep.densities are given; keep one of them")
    patterns: Sequence[str | None] = settings.patterns or (None,)
    distributions: Sequence[str | None] = settings.distributions or (None,)
    allocations = [Allocation(rule, pattern) for pattern, rule in product(patterns, distributions)]
    for distribution in settings.distributions or ():
        if distribution not in (*RULES, GLOBAL):
            raise ConfigError(f"sweep.distributions has {distribution!r}, expected of {', '.join((*RULES, GLOBAL))}")
    sweep = Sweep(
        base,
        tuple(settings.structures or settings.densities or [None]),
        tuple(allocations),
        _choices(section, "criteria", base.criterion),
        _choices(section, "schedules", base.schedule),
        tuple(settings.training or ({},)),
        tuple(settings.metrics or ()),
        settings.kept_correlation,
    )
    for axis in ("structures", "allocations", "criteria", "schedules", "training", "metrics"):
        values = getattr(sweep, axis)
        if any(value in values[:index] for index, value in enumerate(values)):
            named = _NAMED.get(axis, axis)
            raise ConfigError(f"sweep.{named} names one of its entries twice: {', '.join(map(_label, values))}")
    return sweep


def _choices(section: Mapping[str, Any], axis: str, default: Choice) -> tuple[Choice, ...]:
    entries = section.get(axis, [])
    if not isinstance(entries, list):
        raise ConfigError(f"sweep.{axis} is {entries!r}, expected a list of names or of tables with a name")
    tables = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    for table in tables:
        if not isinstance(table, Mapping) or "name" not in table:
            raise ConfigError(f'sweep.{axis} has an entry {table!r}, expected "NAME" or {{name = "NAME", ...}}')
    return tuple(to_choice(_AXES[axis], table) for table in tables) or (default,)


def _label(value: str | float | Choice | Allocation | Mapping[str, Any] | None) -> str:
    if value is None or isinstance(value, str | float | Allocation):
        return str(value)
    settings = value.options if isinstance(value, Choice) else value
    text = ", ".join(f"{key}={setting}" for key, setting in settings.items())
    if isinstance(value, Choice):
        return f"{value.name} ({text})" if text else value.name
    return text


@attrs.frozen
class Cell:
    """One row of the table.

    Attributes:
        kind: "dense" (not pruned, not trained on), "control" (not pruned, trained on for as many steps), "pruned".
        structure: as the recipe has it; of one density "*=DENSITY"; "" for the dense network.
        criterion: with options, for reading; "" where nothing is pruned.
        schedule: likewise.
        training: settings that differ from the recipe's; "" for none.
        config: what to run; its seed is the first.
        plan: its stages.
        traced: whether the criterion ranks by what training steps did.
        allocation: how the density becomes masks, where the sweep varies that; "" otherwise, and for the dense network.
    """

    kind: str
    structure: str
    criterion: str
    schedule: str
    training: str
    config: RunConfig
    plan: Plan
    traced: bool = False
    allocation: str = ""

    def __str__(self) -> str:
        kind = "" if self.kind == "pruned" else self.kind
        parts = (kind, self.structure, self.allocation, self.criterion, self.schedule, self.training)
        return "; ".join(filter(None, parts))


def make_cells(sweep: Sweep, manager: PluginManager, registry: Registry) -> list[Cell]:
    """Return the cells of a grid, each checked like a run; controls stand behind the cells of their structure.

    Raises:
        PrunekitError: whatever a run would refuse before it trains.
    """
    cells: list[Cell] = []
    like: PreparedRun | None = None

    def add(
        kind: str,
        target: tuple[str | float | None, Allocation],
        training: Mapping[str, Any],
        schedule: Choice,
        criterion: Choice,
        last: int | None,
    ) -> None:
        nonlocal like
        structure, allocation = target
        changed: dict[str, Any] = allocation.changes(sweep.base)
        if structure is not None:
            changed |= dict.fromkeys(("structure", "density"))
            changed["structure" if isinstance(structure, str) else "density"] = structure
        config = attrs.evolve(
            sweep.base,
            **changed,
            criterion=criterion,
            schedule=schedule,
            training={**sweep.base.training, **training},
            dense=kind != "pruned",
        )
        like = prepare(config, manager, registry, device="meta", like=like)
        plan = Plan(like.plan.stages[:last])
        labels = (_label(criterion), _label(schedule)) if kind == "pruned" else ("", "")
        shown = "" if kind == "dense" else config.asked_structure or like.task.structure
        how = "" if kind == "dense" else str(allocation)
        traced = "training" in like.make_criterion().needs
        cells.append(Cell(kind, shown, *labels, _label(training), config, plan, traced, how))

    firsts = sweep.schedules[0], sweep.criteria[0]
    targets = list(product(sweep.structures, sweep.allocations))
    add("dense", targets[0], sweep.training[0], *firsts, 1)
    for target, training in product(targets, sweep.training):
        for schedule, criterion in product(sweep.schedules, sweep.criteria):
            add("pruned", target, training, schedule, criterion, None)
        add("control", target, training, *firsts, None)
    return cells
