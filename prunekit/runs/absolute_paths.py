"""A configuration whose paths mean the same from every folder, so that a run folder's recipe does, too.

It must not know what lies there.
"""

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit.plugins.registry import Kind, Registry
from prunekit.runs.config import Choice, RunConfig


def with_absolute_paths(config: RunConfig, registry: Registry) -> RunConfig:
    """Return the configuration with every path absolute: files, and options of plugins that are paths.

    Args:
        config: paths in it are relative to the current folder.
        registry: knows which options of task, criterion and schedule are paths.
    """
    return attrs.evolve(
        config,
        task=_choice("task", config.task, registry),
        criterion=_choice("criterion", config.criterion, registry),
        schedule=_choice("schedule", config.schedule, registry),
        masks=_absolute(config.masks),
        weights=_absolute(config.weights),
        out=_absolute(config.out),
    )


def _choice(kind: Kind, choice: Choice, registry: Registry) -> Choice:
    known = registry.entry(kind, choice.name).options
    options = {
        name: _absolute(value) if name in known and _is_path(known[name].type) else value
        for name, value in choice.options.items()
    }
    where, colon, cls = choice.name.rpartition(":")
    return Choice(f"{_absolute(where)}{colon}{cls}" if where.endswith(".py") else choice.name, options)


def _absolute(value: Any) -> Any:
    """Return an absolute path as text, or several; what is none, and the word for none, stay."""
    if isinstance(value, list | tuple):
        return [_absolute(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _absolute(part) for key, part in value.items()}
    return value if value in (None, "none", "") or not isinstance(value, str | Path) else str(Path(value).absolute())


def _is_path(kind: Any) -> bool:
    """Say whether an option is a path, or may be, or several."""
    return kind is Path or any(map(_is_path, typing.get_args(kind)))
