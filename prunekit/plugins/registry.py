"""Collect the criteria, schedules and tasks of all plugins by name, and check each class once.

A class that breaks its contract is refused here, with its plugin and package, and not during a run. This module must
not know recipes, commands or training.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import attrs

from prunekit.contracts.criterion import Criterion, Need, NetworkCriterion
from prunekit.contracts.schedule import Schedule
from prunekit.contracts.task import Task
from prunekit.errors import ConfigError, PluginError, nearest
from prunekit.masks.selection import Scope
from prunekit.plugins.construct import OptionInfo, construct, options_of
from prunekit.plugins.manager import PluginManager, Source

Kind = Literal["criterion", "schedule", "task"]
Class = TypeVar("Class")

_CONTRACTS: Mapping[Kind, type] = {"criterion": Criterion, "schedule": Schedule, "task": Task}
_HOOKS: Mapping[Kind, str] = {
    "criterion": "prunekit_criteria",
    "schedule": "prunekit_schedules",
    "task": "prunekit_tasks",
}
# How to install tasks that the documentation uses but this package does not contain.
_INSTALL = {"deepid2plus": "install it from the repository with 'pip install ./plugins/prunekit-deepid2plus'"}


@attrs.frozen
class Registered(Generic[Class]):
    """A criterion, schedule or task and the plugin that provides it."""

    cls: type[Class]
    source: Source

    @property
    def summary(self) -> str:
        """The first line of the docstring of the class."""
        return (inspect.getdoc(self.cls) or "").split("\n", 1)[0]

    @property
    def options(self) -> Mapping[str, OptionInfo]:
        """The options a user can set, by name."""
        return options_of(self.cls)


@attrs.frozen
class Registry:
    """The criteria, schedules and tasks of all plugins, by name in alphabetical order.

    registry = collect(make_manager())
    criterion = registry.make_criterion("magnitude")
    """

    criteria: Mapping[str, Registered[Criterion]]
    schedules: Mapping[str, Registered[Schedule]]
    tasks: Mapping[str, Registered[Task]]

    def make_criterion(self, name: str, options: Mapping[str, Any] | None = None) -> Criterion:
        """Construct a new criterion; see ``make``."""
        criterion: Criterion = self.make("criterion", name, options)
        return criterion

    def make_schedule(self, name: str, options: Mapping[str, Any] | None = None) -> Schedule:
        """Construct a new schedule; see ``make``."""
        schedule: Schedule = self.make("schedule", name, options)
        return schedule

    def make_task(self, name: str, options: Mapping[str, Any] | None = None) -> Task:
        """Construct a new task; see ``make``."""
        task: Task = self.make("task", name, options)
        return task

    def make(self, kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Construct a new object of the class called ``name`` with the options of a user.

        Args:
            kind: "criterion", "schedule" or "task".
            name: see ``entry``.
            options: option -> value; text is converted to the type of the option.

        Raises:
            ConfigError: an unknown name or option, or a value that the option does not accept.
        """
        return construct(self.entry(kind, name).cls, options or {}, kind, f"{kind} {name!r}")

    def entry(self, kind: Kind, name: str) -> Registered[Any]:
        """Return the entry called ``name``, or import ``module:Class`` or ``file.py:Class``.

        Raises:
            ConfigError: an unknown name; suggests the nearest one, or how to install it.
            PluginError: a class that breaks its contract.
        """
        if ":" in name:
            return _import_entry(kind, name)
        known = self.of_kind(kind)
        if name in known:
            return known[name]
        if name in _INSTALL:
            available = ", ".join(known) or "none"
            raise ConfigError(
                f"{kind} {name!r} is not installed, or disabled (available: {available}); {_INSTALL[name]}"
            )
        raise ConfigError(f"there is no {kind} {name!r}{nearest(name, known)}")

    def of_kind(self, kind: Kind) -> Mapping[str, Registered[Any]]:
        """Return the entries of one kind by name."""
        kinds: Mapping[Kind, Mapping[str, Registered[Any]]] = {
            "criterion": self.criteria,
            "schedule": self.schedules,
            "task": self.tasks,
        }
        return kinds[kind]


def collect(manager: PluginManager) -> Registry:
    """Collect the criteria, schedules and tasks of all plugins, and check them.

        registry = collect(make_manager())
        print(list(registry.criteria))

    Raises:
        PluginError: a hook fails, a class is abstract, unnamed or breaks its contract, or two classes share a name;
            names plugin, package and the next step.
    """
    return Registry(_collect(manager, "criterion"), _collect(manager, "schedule"), _collect(manager, "task"))


def _collect(manager: PluginManager, kind: Kind) -> dict[str, Registered[Any]]:
    entries: dict[str, Registered[Any]] = {}
    for cls, source in manager.results(_HOOKS[kind]):
        problem = contract_problem(cls, kind)
        if problem:
            raise source.error(f"provides {_label(cls)} as a {kind}, but {problem}")
        other = entries.setdefault(cls.name, Registered(cls, source))
        if other.cls is not cls:
            raise PluginError(
                f"{kind} {cls.name!r} is provided by {other.source} and by {source}; "
                f"disable one with --no-plugin {other.source.plugin} or --no-plugin {source.plugin}"
            )
    return dict(sorted(entries.items()))


def _label(cls: Any) -> str:
    return cls.__name__ if isinstance(cls, type) else repr(cls)


def contract_problem(cls: Any, kind: Kind) -> str:
    """Return how a class breaks the contract of a criterion, schedule or task; "" if it does not."""
    contract = _CONTRACTS[kind]
    if not isinstance(cls, type) or not issubclass(cls, contract):
        return f"it is not a subclass of prunekit.{contract.__name__}"
    if cls.__abstractmethods__:  # type: ignore[attr-defined] # every contract is an ABC
        return f"it lacks {', '.join(sorted(cls.__abstractmethods__))}"  # type: ignore[attr-defined]
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name or set(name) & set(" :.="):
        return f"its name is {name!r}, expected a text without spaces or any of : . ="
    try:
        options_of(cls)
    except PluginError as error:
        return str(error)
    return _criterion_problem(cls) if issubclass(cls, Criterion) else ""


def _criterion_problem(cls: type[Criterion]) -> str:
    for need in cls.needs:
        if need not in get_args(Need):
            return f"it needs {need!r}{nearest(str(need), get_args(Need))}"
    if "training" in cls.needs and cls.trace is Criterion.trace:
        return "it needs 'training' but does not define trace(weight, gradient), which is summed over the steps; add it"
    if ("network" in cls.needs) != issubclass(cls, NetworkCriterion):
        return 'it must both need "network" and subclass prunekit.NetworkCriterion, or do neither'
    if cls.scope not in get_args(Scope):
        return f"its scope is {cls.scope!r}{nearest(str(cls.scope), get_args(Scope))}"
    return ""


def _import_entry(kind: Kind, name: str) -> Registered[Any]:
    cls, where = import_named(kind, name), name.rpartition(":")[0]
    problem = contract_problem(cls, kind)
    if problem:
        raise PluginError(f"{where} provides {_label(cls)} as a {kind}, but {problem}")
    return Registered(cls, Source(name, where))


def import_named(what: str, name: str) -> Any:
    """Import the object that ``module:attribute`` or ``file.py:attribute`` names.

    Args:
        what: how errors call the object, for example "task".
        name: a name with a colon.

    Raises:
        ConfigError: it cannot be imported, or has no such attribute.
    """
    where, _, attribute = name.rpartition(":")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{what} {name!r} cannot be imported: {problem}") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ConfigError(f"{what} {name!r}: {where} has no {attribute!r}{nearest(attribute, public)}")
    return found


def _import_file(path: Path) -> Any:
    """Import a file once, under a unique module name, so that one task.py cannot replace another."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    whole = str(path.resolve())
    name = f"_prunekit_file_{hashlib.sha256(whole.encode(errors='surrogateescape')).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As an ordinary import does: pickling for worker processes and typing look modules up here.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
