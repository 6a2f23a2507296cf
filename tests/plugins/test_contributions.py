"""Export formats and commands of plugins: found by name, and refused when they cannot work, with the plugin's name."""

from typing import Any

import attrs
import click
import pytest

from prunekit import cli
from prunekit.contracts.export_format import ExportFormat
from prunekit.contracts.markers import hookimpl
from prunekit.errors import PluginError
from prunekit.plugins.contributions import brought, commands, export_formats
from prunekit.plugins.manager import PluginManager, Source, make_manager


@attrs.frozen
class Formats:
    """A plugin with export formats."""

    formats: list[Any]

    @hookimpl
    def prunekit_export_formats(self):
        return self.formats


@attrs.frozen
class Commands:
    """A plugin with commands."""

    commands: list[Any]

    @hookimpl
    def prunekit_commands(self):
        return self.commands


def format_called(name: str) -> ExportFormat:
    return ExportFormat(name, "One line.", print, print, 0.0, "open({path})")


def manager_with(*plugins: object) -> PluginManager:
    manager = make_manager(third_party=False)
    for number, plugin in enumerate(plugins):
        manager.add(plugin, Source(f"mine-{number}", f"package-{number}"))
    return manager


def test_the_built_in_formats_come_through_the_hook_like_any_others() -> None:
    formats = export_formats(manager_with(Formats([format_called("mine")])))
    assert list(formats) == ["csr", "dense", "mine", "onnx", "semi-structured", "shrunk", "sparse", "torch-export"]
    assert formats["mine"].source.package == "package-0"
    assert formats["onnx"].source.package == "prunekit"
    assert all("{path}" in each.value.load and each.value.summary for each in formats.values())


def test_without_the_plugin_export_there_are_no_built_in_formats() -> None:
    assert export_formats(make_manager(["export"], third_party=False)) == {}


def test_two_formats_of_one_name_are_an_error_with_both_packages() -> None:
    manager = manager_with(Formats([format_called("onnx")]))
    with pytest.raises(PluginError, match=r"export format 'onnx' is provided by plugin .* of package .* and by plugin"):
        export_formats(manager)


@pytest.mark.parametrize("value", [format_called(""), "npz", ExportFormat])
def test_a_value_that_is_not_a_format_names_its_plugin(value: Any) -> None:
    with pytest.raises(
        PluginError, match=r"plugin 'mine-0' of package 'package-0' returns .* expected ExportFormat objects"
    ):
        export_formats(manager_with(Formats([value])))


def test_a_command_may_not_take_the_name_of_a_built_in() -> None:
    manager = manager_with(Commands([click.Command("run")]))
    with pytest.raises(PluginError, match="'package-0' provides the command 'run', which package 'prunekit' has"):
        commands(manager, cli.COMMANDS)


def test_two_commands_of_one_name_are_an_error_with_both_packages() -> None:
    manager = manager_with(Commands([click.Command("more")]), Commands([click.Command("more")]))
    with pytest.raises(PluginError, match=r"package 'package-[01]' and by .* of package 'package-[01]'"):
        commands(manager, cli.COMMANDS)


def test_a_command_of_a_plugin_runs_within_the_same_boundary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.argument("word")
    def more(word: str) -> None:
        """Print a word."""
        if word == "bad":
            raise PluginError("word is 'bad', expected another")
        click.echo(word)

    manager = manager_with(Commands([more]))
    monkeypatch.setattr("prunekit.plugins.manager.make_manager", lambda _: manager)
    assert cli.main(["more", "good"]) == 0
    assert capsys.readouterr().out == "good\n"
    assert cli.main(["more", "bad"]) == 2
    assert capsys.readouterr().err == "error: word is 'bad', expected another\n"
    assert cli.main(["mroe"]) == 2
    assert "No such command 'mroe'" in capsys.readouterr().err


def test_the_contributions_of_a_plugin_are_described_including_hooks() -> None:
    class Ears:
        @hookimpl
        def prunekit_run_finished(self, event):
            pass

        @hookimpl
        def prunekit_stage_finished(self, event):
            pass

    manager = manager_with(Formats([format_called("a"), format_called("b")]), Ears())
    texts = brought(manager, {"format": export_formats(manager)})
    assert texts["mine-0"] == ["format: a, b"]
    assert texts["mine-1"] == ["listener: run_finished, stage_finished"]


def test_a_listener_that_fails_is_named_with_the_way_out() -> None:
    class Broken:
        @hookimpl
        def prunekit_run_finished(self, event):
            raise ZeroDivisionError("a bug")

    manager = manager_with(Broken())
    with pytest.raises(PluginError) as raised:
        manager.hook.prunekit_run_finished(event=None)
    assert str(raised.value).startswith("plugin 'mine-0' of package 'package-0' failed in prunekit_run_finished (test_")
    assert str(raised.value).endswith("ZeroDivisionError: a bug; disable it with --no-plugin mine-0")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
