"""README and docs are true: links lead somewhere, hooks are all described, every example runs.

Blocks marked ``python`` are executed, those of a page one after the other; what stands in comments at and below a
``print`` must be printed. In blocks marked ``console`` each line
after ``$`` is run, and the lines below it must stand in its output. Blocks marked ``bash`` take minutes, or data; what
they need is tested elsewhere. Blocks behind ``<!-- same as FILE -->`` are compared with the file.
"""

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import prunekit
from prunekit.cli import main
from prunekit.plugins import hookspecs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- same as (\S+) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [(same, text) for same, kind, text in BLOCK.findall(page.read_text()) if kind == language]


def shown_by_prints(text):
    """Return what comments say that a block prints: behind a ``print``, and in the lines below it."""
    comments = re.findall(r"^ *print\(.*?\)(?:  # (.*))?\n((?: *# .*\n)*)", text, flags=re.MULTILINE)
    return [line for first, below in comments for line in (first, *re.findall(r"# (.*)", below)) if line]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Give the examples an empty folder of their own, with what they read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    tutorial = ROOT / "examples" / "third-party-criterion"
    (tmp_path / "activation_weighted.py").write_bytes((tutorial / "activation_weighted.py").read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("activation_weighted", None)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.system
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_every_python_example_runs_and_prints_what_the_page_shows(page, workplace, capsys):
    torch.manual_seed(0)
    namespace = {"__name__": "example"}
    for number, (_, text) in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{name_of(page)}, python block {number}", "exec"), namespace)  # noqa: S102 - our own pages
        output = capsys.readouterr().out
        for line in shown_by_prints(text):
            assert line in output, f"block {number} prints {output!r}, not {line!r}"


@pytest.mark.system
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=name_of)
def test_every_console_example_prints_what_the_page_shows(page, workplace, capfd):
    for _, text in blocks(page, "console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            program, *arguments = shlex.split(command, comments=True)
            assert program == "prunekit"
            code = main(arguments)
            output = capfd.readouterr()
            assert code == 0, output.err
            for line in shown:
                assert line in output.out, f"{command!r} does not print {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_shows_a_file_is_the_file(page):
    for language in ("python", "toml"):
        for same, text in blocks(page, language):
            assert not same or text.rstrip() == (ROOT / same).read_text().rstrip()


def test_every_hook_stands_in_the_reference_with_its_arguments():
    reference = (ROOT / "docs" / "reference" / "plugins.md").read_text()
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("prunekit_")}
    assert len(hooks) >= 12
    for name, hook in hooks.items():
        assert f"`{name}({', '.join(inspect.signature(hook).parameters)})`" in reference
    assert set(re.findall(r"`(prunekit_\w+)\(", reference)) == hooks.keys()


def test_every_member_of_the_contracts_stands_in_the_reference():
    reference = (ROOT / "docs" / "reference" / "plugins.md").read_text()
    for contract in (
        prunekit.Criterion,
        prunekit.NetworkCriterion,
        prunekit.Schedule,
        prunekit.Task,
        prunekit.LayerView,
        prunekit.ChannelFollower,
    ):
        for name, member in vars(contract).items():
            if not name.startswith("_") and inspect.isfunction(member) and name not in {"plan", "shape"}:
                parameters = list(inspect.signature(member).parameters)[1:]
                assert f"`{name}({', '.join(parameters)})`" in reference, f"{contract.__name__}.{name}"


def test_the_pages_of_the_built_ins_are_those_of_their_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    make_reference = importlib.import_module("make_reference")
    made = dict(make_reference.pages())
    there = {path for kind in ("criteria", "schedules") for path in (ROOT / "docs" / "reference" / kind).glob("*.md")}
    assert there == made.keys(), "run python docs/make_reference.py"
    for path, text in made.items():
        assert path.read_text() == text, f"{name_of(path)} is old; run python docs/make_reference.py"


def test_the_drawing_of_the_rooms_is_that_of_their_imports(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    architecture = importlib.import_module("make_architecture")
    assert architecture.PICTURE.read_text() == architecture.draw(), "run python docs/make_architecture.py"


def test_the_picture_of_a_run_has_the_columns_that_a_run_prints():
    picture = (ROOT / "docs" / "start" / "run.svg").read_text().replace("&#160;", " ")
    for column in ("requested", "realised", "kept", "weights left", "accuracy"):
        assert column in picture, "run python docs/make_run_picture.py"


def test_every_room_stands_on_the_page_of_the_architecture():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / "prunekit").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)/` \|", page, flags=re.MULTILINE))


def test_every_folder_has_an_index_of_all_its_pages():
    for folder in ("start", "guide", "deploy", "reference", "results"):
        index = ROOT / "docs" / folder / "README.md"
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", index.read_text())
        pages = {path.name for path in index.parent.glob("*.md")} - {"README.md"}
        assert pages <= set(targets), folder


def test_the_readme_is_short_and_leads_to_few_pages():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    assert readme.partition("## Where to go on")[2].count("\n- ") <= 10


def test_the_changelog_has_the_version():
    assert f"## {prunekit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.system
@pytest.mark.parametrize(("name", "density"), [("own_loop", 0.04), ("lightning_module", 0.04), ("hf_trainer", 0.36)])
def test_an_example_of_a_training_loop_is_short_and_learns(name, density, workplace, capsys):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert text.count("\n") < 60
    namespace = {"__name__": name}
    exec(compile(text, name, "exec"), namespace)  # noqa: S102 - our own file
    namespace["main"]()
    assert re.search(r"accuracy (0\.9|1)", capsys.readouterr().out)
    assert prunekit.load_masks("masks.safetensors").density() < density
