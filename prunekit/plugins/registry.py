"""What the plugins bring: criteria, schedules and tasks by name, each checked once when collected.

A class that cannot work is refused here, with the plugin and package that gave it, and not in the
middle of a run. This module must not know recipes, commands or training.
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
# Where to get what the documentation speaks of but this package does not contain.
_INSTALL = {"deepid2plus": "install it from the repository with 'pip install ./plugins/prunekit-deepid2plus'"}


@attrs.frozen
class Registered(Generic[Class]):
    """One criterion, schedule or task, and the plugin that gave it."""

    cls: type[Class]
    source: Source

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return (inspect.getdoc(self.cls) or "").split("\n", 1)[0]

    @property
    def options(self) -> Mapping[str, OptionInfo]:
        """What a user may set."""
        return options_of(self.cls)


@attrs.frozen
class Registry:
    """Everything the plugins bring, by name, in alphabetical order."""

    criteria: Mapping[str, Registered[Criterion]]
    schedules: Mapping[str, Registered[Schedule]]
    tasks: Mapping[str, Registered[Task]]

    def make_criterion(self, name: str, options: Mapping[str, Any] | None = None) -> Criterion:
        """Return a fresh criterion; see ``make``."""
        criterion: Criterion = self.make("criterion", name, options)
        return criterion

    def make_schedule(self, name: str, options: Mapping[str, Any] | None = None) -> Schedule:
        """Return a fresh schedule; see ``make``."""
        schedule: Schedule = self.make("schedule", name, options)
        return schedule

    def make_task(self, name: str, options: Mapping[str, Any] | None = None) -> Task:
        """Return a fresh task; see ``make``."""
        task: Task = self.make("task", name, options)
        return task

    def make(self, kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Return a fresh object of the class called ``name``, with a user's options.

        Args:
            kind: what it is.
            name: as for ``entry``.
            options: option -> value; text is converted to the option's type.

        Raises:
            ConfigError: an unknown name or option, or a value that the option does not take.
        """
        return construct(self.entry(kind, name).cls, options or {}, kind, f"{kind} {name!r}")

    def entry(self, kind: Kind, name: str) -> Registered[Any]:
        """Return the entry called ``name``, or the class that ``module:Class`` or ``file.py:Class`` means.

        Raises:
            ConfigError: an unknown name; says the nearest, or how to install it.
            PluginError: a class that does not keep its contract.
        """
        if ":" in name:
            return _import_entry(kind, name)
        known = self.of_kind(kind)
        if name in known:
            return known[name]
        if name in _INSTALL:
            there = ", ".join(known) or "none"
            raise ConfigError(f"{kind} {name!r} is not installed, or disabled (there is: {there}); {_INSTALL[name]}")
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
    """Ask every plugin what it brings, and check it.

    Raises:
        PluginError: a hook that fails; a class that is unfinished, without a name, or not of its
            contract; two classes of one name. Names plugin, package and the way out.
    """
    return Registry(_collect(manager, "criterion"), _collect(manager, "schedule"), _collect(manager, "task"))


def _collect(manager: PluginManager, kind: Kind) -> dict[str, Registered[Any]]:
    entries: dict[str, Registered[Any]] = {}
    for cls, source in manager.results(_HOOKS[kind]):
        problem = contract_problem(cls, kind)
        if problem:
            raise source.error(f"brings {_label(cls)} as a {kind}, but {problem}")
        other = entries.setdefault(cls.name, Registered(cls, source))
        if other.cls is not cls:
            raise PluginError(
                f"{kind} {cls.name!r} is brought by {other.source} and by {source}; "
                f"disable one with --no-plugin {other.source.plugin} or --no-plugin {source.plugin}"
            )
    return dict(sorted(entries.items()))


def _label(cls: Any) -> str:
    return cls.__name__ if isinstance(cls, type) else repr(cls)


def contract_problem(cls: Any, kind: Kind) -> str:
    """Say what keeps a class from being a criterion, a schedule or a task; "" if nothing does."""
    contract = _CONTRACTS[kind]
    if not isinstance(cls, type) or not issubclass(cls, contract):
        return f"it is no subclass of prunekit.{contract.__name__}"
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
        return "it needs 'training', but does not say what is summed over the steps; define trace(weight, gradient)"
    if ("network" in cls.needs) != issubclass(cls, NetworkCriterion):
        return 'it needs "network" without being a prunekit.NetworkCriterion, or the other way round'
    if cls.scope not in get_args(Scope):
        return f"its scope is {cls.scope!r}{nearest(str(cls.scope), get_args(Scope))}"
    return ""


def _import_entry(kind: Kind, name: str) -> Registered[Any]:
    cls, where = import_named(kind, name), name.rpartition(":")[0]
    problem = contract_problem(cls, kind)
    if problem:
        raise PluginError(f"{where} brings {_label(cls)} as a {kind}, but {problem}")
    return Registered(cls, Source(name, where))


def import_named(what: str, name: str) -> Any:
    """Return what ``module:attribute`` or ``file.py:attribute`` means.

    Args:
        what: what to call it in an error, for example "task".
        name: has a colon.

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
    """Run a file once, under a name that no other module has: a task.py must not take the place of another task."""
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
