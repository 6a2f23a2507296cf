"""Collect the export formats and commands of all plugins by name, and check each of them.

This module must not know any format or command.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs
import click

from prunekit.contracts.export_format import ExportFormat
from prunekit.errors import PluginError
from prunekit.plugins.manager import PluginManager, Source, make_manager

Thing = TypeVar("Thing", ExportFormat, click.Command)


@attrs.frozen
class Contribution(Generic[Thing]):
    """A format or command and the plugin that provides it."""

    value: Thing
    source: Source


def export_formats(manager: PluginManager | None = None) -> dict[str, Contribution[ExportFormat]]:
    """Return the export formats by name; without a manager, those of the core and of all installed plugins.

    Raises:
        PluginError: a hook fails or returns anything but formats, or two formats share a name.
    """
    return _by_name(manager or make_manager(), "prunekit_export_formats", ExportFormat, "export format", ())


def commands(manager: PluginManager, reserved: Iterable[str] = ()) -> dict[str, Contribution[click.Command]]:
    """Return the commands of plugins by name.

    Args:
        manager: the plugins.
        reserved: names of the built-in commands.

    Raises:
        PluginError: a hook fails or returns anything but commands, or two commands share a name.
    """
    return _by_name(manager, "prunekit_commands", click.Command, "command", reserved)


def _by_name(
    manager: PluginManager, hook: str, kind: type[Thing], what: str, reserved: Iterable[str]
) -> dict[str, Contribution[Thing]]:
    found: dict[str, Contribution[Thing]] = {}
    for value, source in manager.results(hook):
        if not isinstance(value, kind) or not value.name:
            raise source.error(f"returns {value!r} from {hook}, expected {kind.__name__} objects with a name")
        if value.name in reserved:
            raise source.error(f"provides the {what} {value.name!r}, which package 'prunekit' has already; rename it")
        other = found.setdefault(value.name, Contribution(value, source)).source
        if other is not source:
            raise PluginError(
                f"{what} {value.name!r} is provided by {other} and by {source}; "
                f"disable one with --no-plugin {other.plugin} or --no-plugin {source.plugin}"
            )
    return dict(sorted(found.items()))


def brought(manager: PluginManager, named: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return plugin -> descriptions of its contributions: their names, layer views and listeners.

    Args:
        manager: the plugins.
        named: kind ("criterion") -> name -> contribution or registered class, each with a ``source``.
    """
    texts: dict[str, list[str]] = {name: [] for name, plugin in manager.list_name_plugin() if plugin is not None}
    for plugin, parts in texts.items():
        for kind, things in named.items():
            if names := [name for name, thing in things.items() if thing.source.plugin == plugin]:
                parts.append(f"{kind}: {', '.join(names)}")
        hooks = manager.hooks_of(plugin)
        if "prunekit_layer_views" in hooks:
            parts.append("layer views")
        if listened := sorted(hook.removeprefix("prunekit_") for hook in hooks & manager.notifications):
            parts.append(f"listener: {', '.join(listened)}")
    return dict(sorted(texts.items()))
