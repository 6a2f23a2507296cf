import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunekit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prunekit"

# From the bottom to the top: a module imports only from modules to its left or above it.
ORDER = [
    "errors",
    "launched",
    "markers",
    "timing",
    "files",
    "tensor_files",
    "torch_files",
    "options",
    "seeds",
    "sharding",
    "computed",
    "layers",
    "core_views",
    "finding",
    "patterns",
    "ranking",
    "selection",
    "streams",
    "distributions",
    "ranks",
    "last_words",
    "fully_sharded",
    "random_state",
    "trees",
    "parts",
    "shared_norms",
    "parallel",
    "moments",
    "products",
    "statistics",
    "masking",
    "mask_patterns",
    "square_roots",
    "holding",
    "foreign_masks",
    "mask_files",
    "masks",
    "comparing",
    "samples",
    "accounting",
    "sparse_checkpoints",
    "criteria",
    "summing",
    "schedules",
    "tasks",
    "events",
    "hookspecs",
    "construct",
    "plugins",
    "registry",
    "shrinking",
    "sparse",
    "structure",
    "config",
    "absolute",
    "recipes",
    "given",
    "interruption",
    "stopping",
    "processes",
    "hardware",
    "optimizers",
    "process_group",
    "semi_structured",
    "sample_inputs",
    "preparation",
    "observing",
    "together",
    "pruning",
    "agreement",
    "tracing",
    "own_loop",
    "bad_steps",
    "reading",
    "training",
    "sharing_out",
    "checkpoint",
    "sharded_checkpoints",
    "run_folder",
    "pruned",
    "export",
    "benching",
    "environment",
    "state",
    "faults",
    "rescue",
    "stage",
    "engine",
    "kept_correlation",
    "intervals",
    "grid",
    "nodes",
    "sweep",
    "summary",
    "toy_task",
    "testing",
    "cli",
]

# Packages of modules that may import each other.
PACKAGES = ("benching", "cli", "export", "shrinking", "sparse")

# What a third party may import, so what built-in plugins and the plugins of this repository may.
OPEN = {
    "markers",
    "errors",
    "options",
    "seeds",
    "layers",
    "core_views",
    "finding",
    "patterns",
    "selection",
    "distributions",
    "statistics",
    "ranks",
    "trees",
    "parts",
}
OPEN |= {"criteria", "summing", "schedules", "tasks", "events", "masks", "testing", "files"}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those that only type checkers see."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from nodes(child)


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of prunekit that a file imports, inside functions too."""
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "prunekit":
            public = {*vars(prunekit), *dir(prunekit)}
            names = [f"prunekit.{alias.name}" for alias in node.names if (PACKAGE / alias.name).exists()]
            names += [f"prunekit.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()]
            assert names or all(alias.name in public for alias in node.names), f"{path}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("prunekit."))


def modules_of_the_core() -> list[Path]:
    return [path for path in sorted(PACKAGE.glob("*.py")) if not path.stem.startswith("__")]


def test_every_module_has_its_place_in_the_order() -> None:
    assert {path.stem for path in modules_of_the_core()} | {*PACKAGES} == set(ORDER)


@pytest.mark.parametrize(
    "path",
    [*modules_of_the_core(), *(path for name in PACKAGES for path in sorted((PACKAGE / name).glob("*.py")))],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_only_go_down(path: Path) -> None:
    own = ORDER.index(path.parent.name) + 1 if path.parent.name in PACKAGES else ORDER.index(path.stem)
    # The list of the built-in plugins is names only, so that whoever imports it imports none of them.
    assert set(imported(path)) - {"builtin"} <= set(ORDER[:own])


def test_the_list_of_built_ins_imports_nothing() -> None:
    assert not list(imported(PACKAGE / "builtin" / "__init__.py"))


@pytest.mark.parametrize(
    "path",
    [
        *sorted((PACKAGE / "builtin").glob("*.py")),
        *sorted((ROOT / "plugins").glob("*/src/**/*.py")),
        *sorted((ROOT / "examples").glob("third-party-*/*.py")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_plugins_import_only_what_a_third_party_may(path: Path) -> None:
    assert set(imported(path)) <= OPEN


def test_adapters_need_only_masks_and_nothing_imports_them() -> None:
    paths = sorted((PACKAGE / "integrations").glob("*.py"))
    assert len(paths) == 4
    for path in paths:
        assert set(imported(path)) <= {"errors", "holding", "masks"}
    for path in set(PACKAGE.glob("**/*.py")) - set(paths):
        assert "integrations" not in set(imported(path))


def test_every_public_name_is_there() -> None:
    for name in dir(prunekit):
        assert getattr(prunekit, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'prunekit' has no attribute 'Critrion'"):
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
