"""The plugin manager: block plugins, register the built-ins, load entry points, and check every plugin.

The manager is created by a function and passed on, never global. Entry points are loaded here rather than by pluggy, so
that a broken one raises an error that names plugin, package and the next step. This module must not know what plugins
contribute; ``registry`` and ``contributions`` collect that.
"""

import inspect
import os
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import pluggy

from prunekit.errors import PluginError, PrunekitError, nearest
from prunekit.layers.view import ViewOf
from prunekit.plugins import builtin, hookspecs

GROUP = "prunekit"
NO_PLUGINS = "PRUNEKIT_NO_PLUGINS"


@attrs.frozen
class Source:
    """The package that a plugin comes from."""

    plugin: str
    package: str
    version: str = ""

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of package {self.package!r}"

    def error(self, problem: str) -> PluginError:
        """Return an error that names this plugin and how to disable it."""
        flat = " ".join(problem.split())
        error = PluginError(f"{self} {flat}; disable it with --no-plugin {self.plugin}")
        error.plugin = self.plugin
        return error


class PluginManager(pluggy.PluginManager):
    """A manager that knows the package of each plugin and refuses plugins that no hook would call."""

    def __init__(self) -> None:
        super().__init__("prunekit")
        self.add_hookspecs(hookspecs)
        self.known_hooks = frozenset(name for name in vars(hookspecs) if name.startswith("prunekit_"))
        self.notifications = frozenset(
            name for name in self.known_hooks if [*inspect.signature(getattr(hookspecs, name)).parameters] == ["event"]
        )
        self._sources: dict[str, Source] = {}

    def source(self, plugin: str) -> Source:
        """Return the source of a plugin by its name."""
        return self._sources.get(plugin) or Source(plugin, "(registered by hand)")

    def add(self, plugin: object, source: Source) -> None:
        """Register a plugin under the name of its source.

        Raises:
            PluginError: an unknown hook, a hook without ``@hookimpl``, wrong arguments, or no hook at all.
        """
        self._sources[source.plugin] = source
        hooks = self._hooks_of(plugin, source)
        if not hooks:
            raise source.error("implements no hook; mark its functions with @prunekit.hookimpl")
        for hook in hooks - self.known_hooks:
            raise source.error(f"implements an unknown hook {hook!r}{nearest(hook, self.known_hooks)}")
        try:
            self.register(plugin, source.plugin)
            self.check_pending()
        except pluggy.PluginValidationError as error:
            raise source.error(f"does not fit its hook: {str(error).splitlines()[-1]}") from error
        except ValueError as error:
            raise source.error("is already registered under another name") from error
        for hook in hooks & self.notifications:
            for implementation in getattr(self.hook, hook).get_hookimpls():
                if implementation.plugin is plugin:
                    implementation.function = _named(implementation.function, hook, source)

    def results(self, hook: str) -> Iterator[tuple[Any, Source]]:
        """Yield every item that plugins return from a hook without arguments, with its source.

        Raises:
            PluginError: the hook of a plugin raises an error.
        """
        for implementation in getattr(self.hook, hook).get_hookimpls():
            source = self.source(implementation.plugin_name)
            try:
                found = list(implementation.function())
            except Exception as error:
                raise source.error(f"failed in {hook}: {type(error).__name__}: {error}") from error
            yield from ((each, source) for each in found)

    def hooks_of(self, plugin: str) -> frozenset[str]:
        """Return the hooks that a plugin implements, by its name."""
        return frozenset(
            hook
            for hook in self.known_hooks
            if any(each.plugin_name == plugin for each in getattr(self.hook, hook).get_hookimpls())
        )

    def _hooks_of(self, plugin: object, source: Source) -> set[str]:
        hooks = set()
        for name in dir(plugin):
            marked = self.parse_hookimpl_opts(plugin, name)
            if marked is not None:
                hooks.add(marked["specname"] or name)
            elif name.startswith("prunekit_") and inspect.isroutine(getattr(plugin, name, None)):
                raise source.error(f"defines {name} without @prunekit.hookimpl")
        return hooks


def _named(listener: Callable[..., Any], hook: str, source: Source) -> Callable[..., Any]:
    """Wrap a listener so that its errors name the plugin; errors of prunekit pass unchanged."""

    def call(*arguments: Any) -> Any:
        try:
            return listener(*arguments)
        except PrunekitError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            raise source.error(f"failed in {hook} ({place}): {type(error).__name__}: {error}") from error

    return call


def make_manager(blocked: Iterable[str] = (), *, third_party: bool = True) -> PluginManager:
    """Return a manager with the built-in plugins and those of installed packages.

    Args:
        blocked: names of plugins to disable, built-in or not.
        third_party: load the plugins of other packages, unless the environment variable ``PRUNEKIT_NO_PLUGINS=1``
            disables them.

    Raises:
        PluginError: a plugin fails to load or does not fit its hooks, two plugins share a name, or a blocked name is
            unknown.
    """
    manager = PluginManager()
    core = {where.rpartition(".")[2].partition(":")[0]: where for where in builtin.PLUGINS}
    foreign = _entry_points()
    for name in blocked:
        if name not in core and name not in foreign:
            raise PluginError(f"--no-plugin {name}: no plugin has that name{nearest(name, {*core, *foreign})}")
        manager.set_blocked(name)
    version = _own_version()
    for name, where in core.items():
        if not manager.is_blocked(name):
            manager.add(_made(pkgutil.resolve_name(where)), Source(name, "prunekit", version))
    if third_party and os.environ.get(NO_PLUGINS, "") in {"", "0"}:
        for name, points in foreign.items():
            if not manager.is_blocked(name):
                _load(manager, points, taken=name in core)
    return manager


def view_of(manager: pluggy.PluginManager) -> ViewOf:
    """Return the function that asks the plugins for the view of a module."""

    def view(module: Any) -> Any:
        return manager.hook.prunekit_layer_views(module=module)

    return view


def installed_views() -> ViewOf:
    """Return the function that asks the core and all installed plugins for the view of a module."""
    return view_of(make_manager())


def _entry_points() -> dict[str, list[metadata.EntryPoint]]:
    """Return the entry points by name; a package found twice on the path counts once."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, {}).setdefault((point.value, _source(point).package), point)
    return {name: list(points.values()) for name, points in sorted(found.items())}


def _source(point: metadata.EntryPoint) -> Source:
    package = point.dist
    return Source(point.name, package.name, package.version) if package else Source(point.name, "(unknown)")


def _load(manager: PluginManager, points: list[metadata.EntryPoint], *, taken: bool) -> None:
    first, *others = points
    owners = [*(["prunekit"] if taken else []), *(_source(point).package for point in points)]
    if taken or others:
        raise PluginError(
            f"packages {' and '.join(map(repr, owners))} both have a plugin {first.name!r}; "
            f"uninstall one, or disable both with --no-plugin {first.name}"
        )
    source = _source(first)
    try:
        plugin = _made(first.load())
    except (Exception, SystemExit) as error:
        raise source.error(f"failed to load: {type(error).__name__}: {error}") from error
    manager.add(plugin, source)


def _made(loaded: Any) -> Any:
    """Return the plugin; a class or function is called to create it, so that each manager has its own state."""
    return loaded() if inspect.isclass(loaded) or inspect.isfunction(loaded) else loaded


def _own_version() -> str:
    try:
        return metadata.version("prunekit")
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        return ""
