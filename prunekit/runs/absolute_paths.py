"""Make the paths of a configuration absolute, so that a run folder's recipe works from any folder.

It must not know what the paths point to.
"""

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from prunekit.plugins.registry import Kind, Registry
from prunekit.runs.config import Choice, RunConfig


def with_absolute_paths(config: RunConfig, registry: Registry) -> RunConfig:
    """Return a configuration with absolute paths: its files, and options of plugins that are paths.

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
    """Return one or several absolute paths as text; ``None``, "none" and "" are returned as they are."""
    if isinstance(value, list | tuple):
        return [_absolute(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _absolute(part) for key, part in value.items()}
    return value if value in (None, "none", "") or not isinstance(value, str | Path) else str(Path(value).absolute())


def _is_path(kind: Any) -> bool:
    """Return whether an option's type is a path, a union with a path, or a collection of paths."""
    return kind is Path or any(map(_is_path, typing.get_args(kind)))
