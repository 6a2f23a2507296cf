"""What a user asked for, as one frozen record: from a TOML recipe, flags and ``-o section.key=value``.

Order of precedence: ``-o``, then flags, then the recipe, then the defaults here. The record is text and
numbers only; what the names stand for is looked up later, by the registry.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from prunekit.construct import construct, convert_options
from prunekit.distributions import Rule
from prunekit.errors import ConfigError, nearest
from prunekit.patterns import NofM, Pattern, parse_pattern
from prunekit.schedules import check_density
from prunekit.selection import Scope
from prunekit.structure import parse_structure
from prunekit.tasks import Training, budget_of

_CHOICES = ("task", "criterion", "schedule")
# Two ways to say one thing: what comes later takes the place of both.
_DENSITIES = {"structure", "density"}
_NO_OPTIONS: Mapping[str, Any] = {}


@attrs.frozen
class Choice:
    """One plugin class by name, and its options as the user wrote them."""

    name: str
    options: Mapping[str, Any] = _NO_OPTIONS


@attrs.frozen
class RunConfig:
    """Everything a run depends on.

    Attributes:
        task: what is being learned.
        criterion: which connections of a layer to keep.
        schedule: when to prune what.
        structure: "LAYER=DENSITY ..."; ``None``: the task's own.
        density: short for the structure "*=DENSITY"; not together with ``structure``.
        distribution: how the layers share ``density``, a total that is then met exactly: "uniform", "erdos-renyi",
            "erdos-renyi-kernel"; ``None``: each layer has that density.
        keep_dense: layers that are not pruned: names, aliases, globs, "first", "last"; the others get sparser, so
            that ``density`` is met.
        pattern: "2:4", "4x1" (rows x columns), "units"; of every mask update that has none of its own.
        scope: what competes, "unit", "layer" or "global", in every mask update that says nothing else; ``None``: what
            the criterion prefers.
        masks: a mask file to start from; ``None``: all weights are kept at first.
        freeze_masks: only re-train, in one stage, under these masks.
        dense: train through the plan's stages, but change no mask: the control of a pruned run.
        weights: a file with weights of the deployed network to start from; ``None``: the task's own.
        sparse_model: whether the run writes its model as a sparse checkpoint.
        training: fields of ``tasks.Training`` that differ from the task's own.
        seed: the root seed, at least 0.
        device: "auto", "cpu", "cuda", "cuda:1".
        out: the run folder; ``None``: a new one under "runs".
        no_plugins: names of plugins to do without.

    Raises:
        ConfigError: what can be seen to be wrong without a task.
    """

    task: Choice = Choice("deepid2plus")
    criterion: Choice = Choice("correlation")
    schedule: Choice = Choice("layerwise")
    structure: str | None = None
    density: float | None = None
    distribution: Rule | None = None
    keep_dense: tuple[str, ...] = ()
    pattern: str | None = None
    scope: Scope | None = None
    masks: str | None = None
    freeze_masks: bool = False
    dense: bool = False
    weights: str | None = None
    sparse_model: bool = False
    training: Mapping[str, Any] = _NO_OPTIONS
    seed: int = 0
    device: str = "auto"
    out: str | None = None
    no_plugins: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(RunConfig):
            _check_text(getattr(self, field.name), field.name)
        for key in ("masks", "weights", "out"):
            if getattr(self, key) == "":
                raise ConfigError(f"{key} is empty, expected a path; leave it out where none is meant")
        if self.structure is not None and self.density is not None:
            raise ConfigError(f"both structure {self.structure!r} and density {self.density:g} are given; keep one")
        if self.freeze_masks and self.masks is None:
            raise ConfigError("freeze_masks re-trains under given masks, but none are; give --masks FILE")
        if self.freeze_masks and self.dense:
            raise ConfigError("dense prunes nothing and freeze_masks re-trains under given masks; keep one of them")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected a whole number of at least 0")
        if self.density is not None:
            check_density(self.density, "density")
        if self.structure is not None:
            parse_structure(self.structure)
        self._check_shares()
        merge_training(Training(), self.training)

    def _check_shares(self) -> None:
        pattern = self.parsed_pattern
        for key, value in (("distribution", self.distribution), ("keep_dense", ", ".join(self.keep_dense))):
            if value and self.structure is not None:
                raise ConfigError(
                    f"{key} {value!r} shares one density out, but structure {self.structure!r} gives each layer its "
                    "own; keep one of them, or give --density in place of the structure"
                )
            if value and self.asked_density is None:
                raise ConfigError(f"{key} {value!r} shares one density out, but none is given; add --density NUMBER")
        if not isinstance(pattern, NofM):
            return
        share = pattern.n / pattern.m
        if self.density is not None and not math.isclose(self.density, share):
            raise ConfigError(
                f"pattern {pattern} has density {share:g}, asked was {self.density:g}; leave the density out"
            )
        if self.distribution is not None:
            raise ConfigError(
                f"pattern {pattern} has density {share:g} in every layer, so distribution {self.distribution!r} "
                "has nothing to share out; leave it out"
            )
        if self.keep_dense and self.density is not None:
            raise ConfigError(
                f"pattern {pattern} cannot make up for layers that stay dense, since it has density {share:g} "
                "everywhere; leave the density out"
            )

    @property
    def parsed_pattern(self) -> Pattern | None:
        """The pattern as a record."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    @property
    def asked_density(self) -> float | None:
        """The one density that the user asked for, by an N:M pattern alone too; ``None``: densities by layer."""
        pattern = self.parsed_pattern
        if self.density is None and self.structure is None and isinstance(pattern, NofM):
            return pattern.n / pattern.m
        return self.density

    @property
    def asked_structure(self) -> str | None:
        """The structure that the user asked for in either way; ``None``: the task's own."""
        return self.structure if self.asked_density is None else f"*={self.asked_density!r}"


def _check_text(value: Any, where: str) -> None:
    """Refuse what no recipe can hold: file names that are no UTF-8 reach Python as text that cannot be written."""
    if isinstance(value, Choice):
        _check_text({"name": value.name, **value.options}, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item, where)
    elif isinstance(value, str) and not is_utf8(value):
        raise ConfigError(f"{where} is {value!r}, which is no UTF-8 text; rename the file or folder")


def is_utf8(text: str) -> bool:
    """Return whether a text can be written to a file; what the shell gave in another encoding cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def merge_training(defaults: Training, overrides: Mapping[str, Any]) -> Training:
    """Return the task's training settings with a user's overrides.

    Raises:
        ConfigError: an unknown setting, or a value that it does not take; names "training.KEY".
    """
    settings = attrs.asdict(defaults) | dict(overrides)
    training: Training = construct(Training, settings, "training", "section [training]")
    budget_of(training)
    return training


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a TOML recipe as nested dicts.

    Raises:
        ConfigError: a file that cannot be read or is no TOML; names file and line.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {str(path)!r} is no UTF-8 text") from error
    except (ValueError, RecursionError) as error:  # a number too long for Python is not tomllib's own error
        raise ConfigError(f"recipe {str(path)!r} is no TOML: {error}") from error


def build_config(
    recipe: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Put recipe, flags and overrides together.

    Args:
        recipe: as ``read_recipe`` returns it.
        flags: top-level key -> value; ``None`` counts as not given. "task", "criterion" and "schedule"
            take a name; where it is another than the recipe's, the recipe's options of the old one are left out.
        overrides: "section.key=value" or "key=value"; the value is TOML, else text.

    Raises:
        ConfigError: an unknown section or key, a value of a wrong type, two ways of saying one thing.
    """
    data = {key: dict(value) if isinstance(value, Mapping) else value for key, value in (recipe or {}).items()}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    if given.keys() & _DENSITIES:
        data = {key: value for key, value in data.items() if key not in _DENSITIES}
    for key, value in given.items():
        if key in _CHOICES:
            _rename(data, key, value)
        else:
            data[key] = value
    for text in overrides:
        _set_override(data, text)
    return _to_config(data)


def to_toml(config: RunConfig) -> str:
    """Return a recipe that says the same as ``config``."""
    data: dict[str, Any] = {}
    for field in attrs.fields(RunConfig):
        value = getattr(config, field.name)
        if isinstance(value, Choice):
            data[field.name] = {"name": value.name, **value.options}
        elif value is not False and value not in (None, (), {}):
            data[field.name] = dict(value) if isinstance(value, Mapping) else value
    # Plain values must come before the first table.
    return tomli_w.dumps(_tables_last(_without_none(data)))


def _tables_last(data: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(data.items(), key=lambda item: isinstance(item[1], dict)))


def _without_none(value: Any) -> Any:
    """TOML has no null; an option reads "none" as ``None``."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items()}
    return "none" if value is None else value


def _set_override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not section or (dot and not key):
        raise ConfigError(
            f"-o {text!r} is not understood, expected section.key=value, for example criterion.strength=1"
        )
    if not dot:
        for rival in _DENSITIES & {*data} if section in _DENSITIES else ():
            del data[rival]
        data[section] = _parse_value(value)
        return
    if section not in (*_CHOICES, "training"):
        raise ConfigError(f"-o {text!r}: there is no section {section!r}{nearest(section, (*_CHOICES, 'training'))}")
    if section in _CHOICES and key == "name":
        _rename(data, section, value.strip())
    else:
        _table(data, section)[key] = _parse_value(value)


def _rename(data: dict[str, Any], section: str, name: str) -> None:
    table = _table(data, section)
    default: Choice = getattr(RunConfig(), section)
    if table.get("name", default.name) != name:
        table.clear()  # another plugin's options mean nothing to this one
    table["name"] = name


def _table(data: dict[str, Any], section: str) -> dict[str, Any]:
    table: Any = data.setdefault(section, {})
    if not isinstance(table, dict):
        example = 'budget = "600 steps"' if section == "training" else f'name = "{getattr(RunConfig(), section).name}"'
        raise ConfigError(f"{section} is {table!r}, expected a section [{section}]; write {section}.{example}")
    return table


def _parse_value(text: str) -> Any:
    """Read a TOML value; whatever TOML would write differently stays text, for the option's own type."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if str(value) == text.strip() else text
    return value if text.lstrip()[:1] in {'"', "'", "[", "{"} else text


def _to_config(data: Mapping[str, Any]) -> RunConfig:
    known = {field.name for field in attrs.fields(RunConfig)}
    for key in data:
        if key not in known:
            raise ConfigError(f"the recipe has an unknown key {key!r}{nearest(key, known)}")
    values: dict[str, Any] = {}
    for section in _CHOICES:
        if section in data:
            values[section] = to_choice(section, _table(dict(data), section))
    if "training" in data:
        values["training"] = convert_options(Training, _table(dict(data), "training"), "training", "section [training]")
    if isinstance(data.get("structure"), Mapping):
        example = " ".join(f"{layer}={density}" for layer, density in data["structure"].items()) or "conv*=0.5"
        raise ConfigError(f'structure is a section, expected text; write structure = "{example}"')
    plain = {key: value for key, value in data.items() if key not in (*_CHOICES, "training")}
    values |= convert_options(RunConfig, plain, "", "the recipe")
    return RunConfig(**values)


def to_choice(section: str, table: Mapping[str, Any]) -> Choice:
    """Read one plugin with its options from a table of a recipe.

    Args:
        section: "task", "criterion" or "schedule".
        table: "name" and options; without a name, the section's default.

    Raises:
        ConfigError: a name that is no text.
    """
    default: Choice = getattr(RunConfig(), section)
    name = table.get("name", default.name)
    if not isinstance(name, str):
        raise ConfigError(f"{section}.name is {name!r}, expected text")
    return Choice(name, {key: value for key, value in table.items() if key != "name"})
