"""Recipes: a ``RunConfig`` from a TOML file, flags and ``-o section.key=value``, and back to TOML.

Order of precedence: ``-o``, then flags, then the recipe, then the record's defaults. This module must not know what
the names in a recipe stand for.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from prunekit.contracts.training import Training
from prunekit.errors import ConfigError, nearest
from prunekit.files.headers import ENTRY, check_header, encode_toml, refuse_other_kinds
from prunekit.plugins.construct import convert_options
from prunekit.runs.config import Choice, RunConfig

_CHOICES = ("task", "criterion", "schedule")
# Two ways to set the densities: a later one replaces both.
_DENSITIES = {"structure", "density"}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a TOML recipe as nested dicts.

    Raises:
        ConfigError: a file that cannot be read, is not valid TOML, or is of another kind; names file and line.
    """
    refuse_other_kinds(Path(path), ("recipe",), ConfigError)
    try:
        recipe = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {str(path)!r} is not valid UTF-8; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # Python's error for a number that is too long is not tomllib's own
        raise ConfigError(f"recipe {str(path)!r} is not valid TOML: {error}") from error
    if ENTRY in recipe:
        check_header(recipe.pop(ENTRY), ("recipe",), Path(path), ConfigError)
    return recipe


def build_config(
    recipe: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Combine a recipe, flags and overrides into a configuration.

        config = build_config(read_recipe("paper.toml"), {"density": 0.1}, ["training.clip_norm=5"])

    Args:
        recipe: as ``read_recipe`` returns it.
        flags: top-level key -> value; ``None`` means not given. "task", "criterion" and "schedule" take a name; if it
            differs from the recipe's, the options of the recipe's plugin are dropped.
        overrides: "section.key=value" or "key=value"; the value is TOML, else text.

    Raises:
        ConfigError: an unknown section or key, a value of a wrong type, or options that contradict each other.
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
    """Return a recipe, with its header, that gives the same configuration."""
    data: dict[str, Any] = {}
    for field in attrs.fields(RunConfig):
        value = getattr(config, field.name)
        if isinstance(value, Choice):
            data[field.name] = {"name": value.name, **value.options}
        elif value is not False and value not in (None, (), {}):
            data[field.name] = dict(value) if isinstance(value, Mapping) else value
    # Plain values must come before the first table.
    return encode_toml("recipe") + tomli_w.dumps(_tables_last(_without_none(data)))


def _tables_last(data: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(data.items(), key=lambda item: isinstance(item[1], dict)))


def _without_none(value: Any) -> Any:
    """Replace ``None`` by "none", because TOML has no null; an option reads "none" as ``None``."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items()}
    return "none" if value is None else value


def _set_override(data: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    if not equals or not section or (dot and not key):
        raise ConfigError(f"cannot parse -o {text!r}, expected section.key=value, for example criterion.strength=1")
    if not dot:
        for rival in _DENSITIES & {*data} if section in _DENSITIES else ():
            del data[rival]
        data[section] = _parse_value(value)
        return
    if section not in (*_CHOICES, "training"):
        raise ConfigError(f"-o {text!r}: unknown section {section!r}{nearest(section, (*_CHOICES, 'training'))}")
    if section in _CHOICES and key == "name":
        _rename(data, section, value.strip())
    else:
        _table(data, section)[key] = _parse_value(value)


def _rename(data: dict[str, Any], section: str, name: str) -> None:
    table = _table(data, section)
    default: Choice = getattr(RunConfig(), section)
    if table.get("name", default.name) != name:
        table.clear()  # the options belong to the other plugin
    table["name"] = name


def _table(data: dict[str, Any], section: str) -> dict[str, Any]:
    table: Any = data.setdefault(section, {})
    if not isinstance(table, dict):
        example = 'budget = "600 steps"' if section == "training" else f'name = "{getattr(RunConfig(), section).name}"'
        raise ConfigError(f"{section} is {table!r}, expected a section [{section}]; write {section}.{example}")
    return table


def _parse_value(text: str) -> Any:
    """Parse a TOML value; if TOML would write it differently, keep the text for the option's own type to parse."""
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
            raise ConfigError(f"unknown key {key!r} in the recipe{nearest(key, known)}")
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
        ConfigError: a name that is not text.
    """
    default: Choice = getattr(RunConfig(), section)
    name = table.get("name", default.name)
    if not isinstance(name, str):
        raise ConfigError(f"{section}.name is {name!r}, expected text")
    return Choice(name, {key: value for key, value in table.items() if key != "name"})
