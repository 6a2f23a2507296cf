"""Every dotted name in backticks, in docs and docstrings, leads somewhere."""

import ast
import importlib
import inspect
import pkgutil
import re
import warnings
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("**/*.md"))
SOURCES = sorted([*(ROOT / "prunekit").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
DOTTED = re.compile(r"`+([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?`+")
# What is no name in Python: files, and settings as recipes write them.
FILES = re.compile(
    r"\.(py|pyi|md|toml|json|jsonl|safetensors|npz|npy|txt|pt|pth|pt2|onnx|html|svg|sh|yml|data|lock|bin)$"
)
SETTINGS = re.compile(r"^(training|task|criterion|schedule|section|grid|sweep|env|run)\.")


@cache
def modules() -> dict[str, list[str]]:
    """Return the modules of the package by their last name, by which docstrings call them."""
    found: dict[str, list[str]] = {}
    for path in (ROOT / "prunekit").rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"} and path.parent.name != "integrations":
            found.setdefault(path.stem, []).append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


@cache
def classes() -> dict[str, list[type]]:
    """Return the classes of the package and of the plugins of this repository by name."""
    found: dict[str, list[type]] = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT / "prunekit").parts if path.is_relative_to(ROOT / "prunekit") else ()
        name = ".".join(("prunekit", *parts)) if parts else ".".join(path.relative_to(path.parents[1]).parts)
        if path.name == "__main__.py" or "integrations" in parts:
            continue
        module = importlib.import_module(name.removesuffix(".py").removesuffix(".__init__"))
        for cls in vars(module).values():
            if inspect.isclass(cls):
                found.setdefault(cls.__name__, []).append(cls)
    return found


def resolves(name: str) -> bool:
    """Say whether a dotted name is a module, or an attribute of one, or of a class."""
    first, *rest = name.split(".")
    owners = [cls for cls in classes().get(first, []) if has(cls, rest)]
    owners += [cls for found in classes().values() for cls in found if cls.__name__.lower() == first and has(cls, rest)]
    homes = [module for module in modules().get(first, []) if hasattr(importlib.import_module(module), rest[0])]
    if owners or homes:
        return True
    with warnings.catch_warnings(action="ignore"):  # torch warns about modules that will be removed
        if found(name):
            return True
        path, _, last = name.rpartition(".")
        owner = found(path)
    return inspect.isclass(owner) and has(owner, [last])


def found(name: str) -> object:
    """Return the module or attribute of a full dotted name, or ``None``."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


def has(cls: type, names: list[str]) -> bool:
    """Say whether a class has a member, or declares an attribute, of that name."""
    annotated = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    return names[0] in annotated or hasattr(cls, names[0])


def checked(name: str) -> bool:
    """Say whether a name claims to be one in Python: it begins with a package or a class."""
    first = name.partition(".")[0]
    known = first in {"prunekit", "torch", "numpy", "safetensors", "pluggy"} or first in classes() or first in modules()
    return known and not FILES.search(name) and not SETTINGS.match(name)


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_dotted_name_in_backticks_resolves(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        tree = ast.walk(ast.parse(text))
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        text = "\n".join(ast.get_docstring(node) or "" for node in tree if isinstance(node, nodes))
    lost = [name for name in DOTTED.findall(text) if checked(name) and not resolves(name)]
    assert not lost, f"{path.relative_to(ROOT)} names {', '.join(lost)}, which nothing is called"
