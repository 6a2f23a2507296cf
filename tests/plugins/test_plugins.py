import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.markers import hookimpl
from prunekit.contracts.options import option
from prunekit.contracts.schedule import Schedule
from prunekit.errors import ConfigError, PluginError
from prunekit.layers.torch_views import ConvolutionView, LinearView
from prunekit.layers.view import LayerView
from prunekit.plugins import builtin
from prunekit.plugins.manager import PluginManager, Source, make_manager, view_of
from prunekit.plugins.registry import Registry, collect
from prunekit.testing import ToyTask

SOURCE = Source("mine", "my-package", "1.2")


@attrs.define
class Sum(Criterion):
    """Score by the weight itself.

    More text.
    """

    name = "sum"

    strength: float = option(0.5, "how strong", low=0, high=1)
    mode: str = option("halves", "which", choices=("halves", "highest"))
    limit: int | None = option(None, "at most", low=1)
    signed: bool = option(False, "with sign")

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight * self.strength


class Plugin:
    """A plugin that provides the given classes."""

    def __init__(self, *criteria: Any) -> None:
        self.criteria = criteria

    @hookimpl
    def prunekit_criteria(self) -> Iterable[Any]:
        return self.criteria


def manager_with(*plugins: tuple[object, str]) -> PluginManager:
    manager = PluginManager()
    for plugin, name in plugins:
        manager.add(plugin, Source(name, f"{name}-package", "1.0"))
    return manager


def registry_of(*criteria: Any) -> Registry:
    return collect(manager_with((Plugin(*criteria), "mine")))


class FakeEntryPoint(importlib.metadata.EntryPoint):
    """An entry point of a package that is not installed."""

    plugin: Any
    package: str

    @classmethod
    def of(cls, name: str, package: str, plugin: Any) -> "FakeEntryPoint":
        point = cls(name, "somewhere", "prunekit")
        vars(point).update(plugin=plugin, dist=FakeDistribution(package))
        return point

    def load(self) -> Any:
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


@attrs.frozen
class FakeDistribution:
    name: str
    version: str = "2.0"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[FakeEntryPoint]:
    """Stand in for the entry points of installed packages."""
    points: list[FakeEntryPoint] = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == "prunekit" else [])
    monkeypatch.delenv("PRUNEKIT_NO_PLUGINS", raising=False)
    return points


def test_built_ins_are_plugins_with_names() -> None:
    manager = make_manager()
    names = {name for name, _ in manager.list_name_plugin()}
    assert {"layer_views", "magnitude", "correlation", "one_shot", "layerwise"} <= names
    assert len(names) == len(builtin.PLUGINS)
    assert manager.source("magnitude").package == "prunekit"


def test_the_built_ins_bring_what_the_documentation_names() -> None:
    registry = collect(make_manager())
    assert {"correlation", "magnitude", "random"} <= set(registry.criteria)
    assert {"layerwise", "one-shot"} <= set(registry.schedules)


def test_two_managers_share_nothing() -> None:
    first, second = make_manager(), make_manager(["magnitude"])
    assert "magnitude" in collect(first).criteria
    assert "magnitude" not in collect(second).criteria


def test_a_blocked_plugin_is_not_even_loaded(installed: list[FakeEntryPoint]) -> None:
    installed.append(FakeEntryPoint.of("broken", "their-package", ImportError("no module named 'gone'")))
    assert not make_manager(["broken"]).has_plugin("broken")


def test_an_unknown_blocked_name_is_an_error_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"--no-plugin magnitud: .*did you mean 'magnitude'"):
        make_manager(["magnitud"])


def test_an_installed_plugin_is_loaded_and_its_package_known(installed: list[FakeEntryPoint]) -> None:
    installed.append(FakeEntryPoint.of("theirs", "their-package", Plugin(Sum)))
    entry = collect(make_manager()).criteria["sum"]
    assert entry.source == Source("theirs", "their-package", "2.0")
    assert entry.summary == "Score by the weight itself."


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_third_party_plugins_can_be_left_out(
    installed: list[FakeEntryPoint], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    installed.append(FakeEntryPoint.of("broken", "their-package", ImportError("gone")))
    if way == "environment":
        monkeypatch.setenv("PRUNEKIT_NO_PLUGINS", "1")
    assert make_manager(third_party=way == "environment").has_plugin("magnitude")


def test_a_broken_plugin_is_named_with_its_package_and_the_way_out(installed: list[FakeEntryPoint]) -> None:
    installed.append(FakeEntryPoint.of("broken", "their-package", ImportError("no module named 'gone'")))
    with pytest.raises(PluginError) as caught:
        make_manager()
    assert str(caught.value) == (
        "plugin 'broken' of package 'their-package' failed to load: ImportError: no module named 'gone'; "
        "disable it with --no-plugin broken"
    )


def test_two_packages_with_a_plugin_of_one_name_are_both_named(installed: list[FakeEntryPoint]) -> None:
    installed += [FakeEntryPoint.of("same", "package-a", Plugin(Sum)), FakeEntryPoint.of("same", "package-b", Plugin())]
    with pytest.raises(PluginError, match=r"'package-a' and 'package-b' both have a plugin 'same'.*--no-plugin same"):
        make_manager()


def test_a_package_that_the_path_finds_twice_counts_once(installed: list[FakeEntryPoint]) -> None:
    installed += [FakeEntryPoint.of("theirs", "their-package", Plugin(Sum))] * 2
    assert "sum" in collect(make_manager()).criteria


def test_a_plugin_cannot_take_the_name_of_a_built_in(installed: list[FakeEntryPoint]) -> None:
    installed.append(FakeEntryPoint.of("magnitude", "their-package", Plugin(Sum)))
    with pytest.raises(PluginError, match="'prunekit' and 'their-package' both have a plugin 'magnitude'"):
        make_manager()


def test_a_misspelt_hook_is_named_with_the_nearest() -> None:
    class Misspelt:
        @hookimpl
        def prunekit_criterias(self) -> list[Any]:
            return []

    with pytest.raises(PluginError, match=r"'mine' .*'my-package' .*'prunekit_criterias' \(did you mean .*_criteria'"):
        PluginManager().add(Misspelt(), SOURCE)


def test_a_hook_with_wrong_arguments_is_one_line() -> None:
    class Wrong:
        @hookimpl
        def prunekit_layer_views(self, modul: nn.Module) -> None: ...

    with pytest.raises(PluginError, match=r"'mine' of package 'my-package'.*modul.*--no-plugin mine") as caught:
        PluginManager().add(Wrong(), SOURCE)
    assert "\n" not in str(caught.value)


def test_a_hook_without_its_marker_is_an_error() -> None:
    plugin = ModuleType("plugin")
    plugin.prunekit_tasks = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"defines prunekit_tasks without @prunekit\.hookimpl"):
        PluginManager().add(plugin, SOURCE)


def test_a_plugin_without_any_hook_is_an_error() -> None:
    with pytest.raises(PluginError, match="implements no hook"):
        PluginManager().add(ModuleType("empty"), SOURCE)


def test_one_plugin_under_two_names_is_an_error() -> None:
    plugin = Plugin(Sum)
    with pytest.raises(PluginError, match="already registered"):
        manager_with((plugin, "one"), (plugin, "two"))


def test_a_duplicate_criterion_names_both_plugins_and_packages() -> None:
    class Other(Sum):
        pass

    manager = manager_with((Plugin(Sum), "one"), (Plugin(Other), "two"))
    with pytest.raises(PluginError) as caught:
        collect(manager)
    for part in ("'sum'", "'one'", "'one-package'", "'two'", "'two-package'", "--no-plugin one", "--no-plugin two"):
        assert part in str(caught.value)


def unfinished() -> type:
    class Unfinished(Criterion):
        name = "unfinished"

    return Unfinished


def nameless() -> type:
    @attrs.define
    class Nameless(Criterion):
        def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
            return weight

    return Nameless


def undecorated() -> type:
    class Undecorated(Criterion):
        name = "undecorated"
        strength: float = option(0.5, "how strong")

        def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
            return weight

    return Undecorated


def hand_written() -> type:
    class HandWritten(nameless()):  # type: ignore[misc]
        name = "hand"

        def __init__(self, strength: float) -> None:
            self.strength = strength

    return HandWritten


def needy() -> type:
    class Needy(Sum):
        needs = frozenset({"activation"})  # type: ignore[arg-type]

    return Needy


def oddly_scoped() -> type:
    class OddlyScoped(Sum):
        scope = "layers"  # type: ignore[assignment]

    return OddlyScoped


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (unfinished, "Unfinished as a criterion, but it lacks score"),
        (nameless, "its name is None"),
        (undecorated, "option 'strength' has no effect; put @attrs.define above class Undecorated"),
        (hand_written, "its constructor with strength is hand-written; make it an attrs class"),
        (needy, "it needs 'activation' \\(did you mean 'activations'"),
        (oddly_scoped, "its scope is 'layers' \\(did you mean 'layer'"),
        (lambda: Schedule, "it is not a subclass of prunekit.Criterion"),
        (lambda: "sum", "provides 'sum' as a criterion"),
    ],
)
def test_a_class_that_cannot_work_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(PluginError, match=f"'mine' of package 'mine-package' .*{problem}.*--no-plugin mine"):
        registry_of(make())


def test_a_hook_that_fails_while_collecting_is_named() -> None:
    class Failing:
        @hookimpl
        def prunekit_tasks(self) -> list[Any]:
            raise KeyError("gone")

    with pytest.raises(PluginError, match=r"'mine' .* failed in prunekit_tasks: KeyError: 'gone'"):
        collect(manager_with((Failing(), "mine")))


def test_a_criterion_without_options_needs_no_decorator() -> None:
    class Bare(Criterion):
        name = "bare"

        def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
            return weight

    assert isinstance(registry_of(Bare).make_criterion("bare"), Bare)


def test_every_make_gives_a_fresh_object() -> None:
    registry = registry_of(Sum)
    assert registry.make_criterion("sum") is not registry.make_criterion("sum")


def test_text_becomes_the_options_type() -> None:
    made = registry_of(Sum).make_criterion("sum", {"strength": "3/4", "limit": "7", "signed": "true"})
    assert made == Sum(strength=0.75, limit=7, signed=True)
    assert registry_of(Sum).make_criterion("sum", {"limit": "none", "strength": 1}) == Sum(strength=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strenth": 1}, "criterion 'sum' has no option 'strenth' (did you mean 'strength'?)"),
        ({"strength": "much"}, "criterion.strength is 'much', expected a number"),
        ({"strength": True}, "criterion.strength is True, expected a number"),
        ({"strength": 2}, "criterion.strength is 2.0, expected at least 0 and at most 1"),
        ({"limit": 1.5}, "criterion.limit is 1.5, expected a whole number or none"),
        ({"signed": "maybe"}, "criterion.signed is 'maybe', expected true or false"),
        ({"mode": "lowest"}, "criterion.mode is 'lowest', expected one of halves, highest"),
        ({"mode": ["halves"]}, "criterion.mode is ['halves'], expected text"),
    ],
)
def test_a_wrong_option_names_section_key_value_and_what_was_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry_of(Sum).make_criterion("sum", options)
    assert str(caught.value) == message


def test_a_missing_required_option_is_reported() -> None:
    @attrs.define
    class Needing(Sum):
        name = "needing"
        path: str = attrs.field(kw_only=True)

    with pytest.raises(ConfigError, match=r"criterion 'needing' needs option 'path'; set it with -o criterion.path="):
        registry_of(Needing).make_criterion("needing")


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no criterion 'summ' \(did you mean 'sum'\?\)"):
        registry_of(Sum).make_criterion("summ")


def test_the_reference_task_says_how_to_install_it() -> None:
    with pytest.raises(
        ConfigError, match=r"'deepid2plus' is not installed.*pip install ./plugins/prunekit-deepid2plus"
    ):
        registry_of(Sum).make_task("deepid2plus")


def test_a_task_can_be_named_by_module_and_class() -> None:
    assert registry_of().make_task("prunekit.testing:ToyTask", {"classes": "3"}) == ToyTask(classes=3)


def test_a_task_can_be_named_by_file_and_class(tmp_path: Path) -> None:
    path = tmp_path / "own_task.py"
    path.write_text("from prunekit.testing import ToyTask\nclass Own(ToyTask):\n    name = 'own'\n", encoding="utf-8")
    assert registry_of().make_task(f"{path}:Own").name == "own"


def test_a_file_runs_once_and_takes_the_place_of_no_other_module(tmp_path: Path) -> None:
    first, second = tmp_path / "json.py", tmp_path / "other" / "json.py"
    second.parent.mkdir()
    for path in (first, second):
        path.write_text("from prunekit.testing import ToyTask\nclass Own(ToyTask):\n    name = 'own'\n")
    registry = registry_of()
    classes = {registry.entry("task", f"{path}:Own").cls for path in (first, first, second)}
    assert len(classes) == 2
    assert registry.entry("task", f"{tmp_path}/other/../json.py:Own").cls in classes
    assert sys.modules["json"] is json
    assert all(sys.modules[cls.__module__].Own is cls for cls in classes)


@pytest.mark.parametrize("line", ["import sys; sys.exit(3)", "raise ValueError('two\\nlines')", "def"])
def test_a_file_that_stops_when_it_is_imported_is_one_line_each_time(tmp_path: Path, line: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(line)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^task '.*broken.py:Task' cannot be imported: \w+: .*$") as caught:
            registry_of().make_task(f"{path}:Task")
        assert "\n" not in str(caught.value)


def test_text_is_not_a_list_and_empty_text_is_not_a_path() -> None:
    @attrs.define
    class Listing(Sum):
        name = "listing"
        words: tuple[str, ...] = ()
        numbers: list[int] | None = None
        path: Path | None = None

    make = registry_of(Listing).make_criterion
    made: Any = make("listing", {"words": ["abc"], "numbers": ["1", 2], "path": "a"})
    assert (made.words, made.numbers, made.path) == (("abc",), [1, 2], Path("a"))
    for options, message in (
        ({"words": "abc"}, 'criterion.words is \'abc\', expected a list, for example ["a", "b"]'),
        ({"words": {"abc": 1}}, "criterion.words is {'abc': 1}, expected a list"),
        ({"numbers": "12"}, "criterion.numbers is '12', expected a list, for example [1, 2] or none"),
        ({"path": ""}, "criterion.path is '', expected a path or none"),
    ):
        with pytest.raises(ConfigError) as caught:
            make("listing", options)
        assert message in str(caught.value)


def test_what_a_class_refuses_in_several_lines_becomes_one() -> None:
    @attrs.define
    class Refusing(Sum):
        name = "refusing"

        def __attrs_post_init__(self) -> None:
            raise ValueError("two\n  lines")

    with pytest.raises(ConfigError, match=r"^criterion 'refusing': two lines$"):
        registry_of(Refusing).make_criterion("refusing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.module:Task", "ModuleNotFoundError"),
        ("gone.py:Task", "no such file: gone.py"),
        ("prunekit.testing:ToyTak", "did you mean 'ToyTask'"),
        ("prunekit.testing:ToyNetwork", "it is not a subclass of prunekit.Task"),
    ],
)
def test_a_task_that_cannot_be_imported_is_one_line(name: str, message: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=message):
        registry_of().make_task(name)


def test_a_plugins_view_comes_before_the_cores(installed: list[FakeEntryPoint]) -> None:
    class OwnView(LinearView):
        kind = "own"

    class OwnLinear(nn.Linear):
        pass

    class Views:
        @hookimpl
        def prunekit_layer_views(self, module: nn.Module) -> LayerView | None:
            return OwnView(module) if isinstance(module, OwnLinear) else None

    installed.append(FakeEntryPoint.of("views", "their-package", Views()))
    view = view_of(make_manager())
    assert isinstance(view(OwnLinear(2, 2)), OwnView)
    assert isinstance(view(nn.Conv2d(1, 1, 1)), ConvolutionView)
    assert view(nn.ReLU()) is None
