"""The house: every module is in a room, imports only go down, and no circle of files ties two modules together."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import prunekit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prunekit"

# From the bottom to the top: a room imports only from itself and from rooms above it in this list.
ROOMS = [
    "errors",
    "files",
    "distributed",
    "masks",
    "layers",
    "contracts",
    "criteria",
    "schedules",
    "reporting",
    "plugins",
    "pruning",
    "runs",
    "deployment",
    "integrations",
    "testing",
    "cli",
]
MOST_ARROWS = 55

# What a plugin may import, of whichever package it is.
OPEN = {"errors", "files", "distributed", "masks", "layers", "contracts", "testing"}
BUILT_IN = {"criteria", "schedules", "reporting"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Return the modules of prunekit that a file imports: in functions and for type checkers, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "prunekit"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "prunekit":
            assert node.module is not None
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in MODULES else node.module)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def arrows() -> set[tuple[str, str]]:
    """Return (room, room that it imports), without those to ``errors``."""
    pairs = {(room(module), room(other)) for module, path in MODULES.items() for other in imported(path)}
    return {(one, other) for one, other in pairs if one and other not in {"", one, "errors"}}


def test_nothing_lies_flat_and_every_package_is_a_room() -> None:
    there = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert there == {"__init__.py", "__init__.pyi", "__main__.py", "errors.py", "py.typed", *ROOMS} - {"errors"}
    assert len(there) <= 20


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in ROOMS])
def test_imports_only_go_down(module: str) -> None:
    below = ROOMS[: ROOMS.index(room(module)) + 1]
    assert {other for other in imported(MODULES[module]) if room(other)} <= {
        other for other in MODULES if room(other) in below
    }


def test_no_file_imports_itself_through_others() -> None:
    TopologicalSorter({module: imported(path) & MODULES.keys() for module, path in MODULES.items()}).prepare()


def test_few_arrows_between_rooms() -> None:
    assert len(arrows()) <= MOST_ARROWS, sorted(arrows())


@pytest.mark.parametrize(
    "path",
    [
        *(path for name in sorted(BUILT_IN) for path in sorted((PACKAGE / name).rglob("*.py"))),
        *sorted((ROOT / "plugins").glob("*/src/**/*.py")),
        *sorted((ROOT / "examples").glob("third-party-*/*.py")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_plugins_import_only_what_a_third_party_may(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    own = {parts[1]} if parts[0] == "prunekit" else set()
    public = {name for name in imported(path) if name == "prunekit"}
    assert {room(module) for module in imported(path) - public} <= OPEN | own


def test_a_built_in_imports_no_other() -> None:
    for name in ("criteria", "schedules"):
        for path in (PACKAGE / name).glob("*.py"):
            others = {module for module in imported(path) if module.startswith(f"prunekit.{name}.")}
            assert all(module.startswith("prunekit.criteria.statistics") for module in others), path


def test_only_opening_a_run_folder_and_bench_know_runs() -> None:
    for module, path in MODULES.items():
        if room(module) == "deployment" and "runs" in map(room, imported(path)):
            assert module == "prunekit.deployment.pruned_network" or ".bench." in module


def test_adapters_need_only_masks_and_pruning_and_nothing_imports_them() -> None:
    for module, path in MODULES.items():
        if room(module) == "integrations":
            assert set(map(room, imported(path))) <= {"errors", "masks", "pruning", "integrations"}
        else:
            assert "integrations" not in set(map(room, imported(path)))


@pytest.mark.parametrize("name", [name for name in ROOMS if name != "errors"])
def test_a_room_says_in_one_sentence_what_is_in_it_and_then_what_it_must_not_know(name: str) -> None:
    package = importlib.import_module(f"prunekit.{name}")
    first, second = (package.__doc__ or "").strip().split("\n\n")[:2]
    assert first.count(". ") == 0
    assert first.endswith(".")
    assert "must not know" in second
    for public in getattr(package, "__all__", ()):
        assert getattr(package, public) is not None


def test_every_public_name_is_there() -> None:
    assert "Masks" in dir(prunekit)
    for name in [*dir(prunekit), "__version__"]:
        assert getattr(prunekit, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No prunekit attribute Critrion"):
        _ = prunekit.Critrion  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code",
    [
        "import prunekit",
        "import prunekit; prunekit.hookimpl",
        *(
            f"from prunekit.cli import main; assert main({arguments}) == 0"
            for arguments in (
                ["--help"],
                ["list", "--help"],
                ["run", "--help"],
                ["masks", "show", "--help"],
                ["export", "--help"],
            )
        ),
    ],
)
def test_help_does_not_wait_for_slow_imports(code: str) -> None:
    slow = {"torch", "numpy", "rich", "attrs", "cattrs", "safetensors", "importlib.metadata"}
    check = f"{code}\nimport sys\nloaded = {slow!r} & set(sys.modules)\nassert not loaded, loaded"
    # The code is that of the parameters above.
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", check], check=True, cwd=ROOT, capture_output=True, text=True
    )
