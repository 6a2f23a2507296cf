"""Small pieces: no class with many methods, no long function, no long signature."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "prunekit").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
METHODS, LINES, PARAMETERS = 15, 50, 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield every class and function of a file with its name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | Function):
            yield node.name, node


def lines_without_docstring(function: Function) -> int:
    """Return the lines of a body, from its first statement behind the docstring to its last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> int:
    """Return the number of parameters; in a public function, keyword-only ones are options and do not count."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    options = len(function.args.kwonlyargs) if function.name.startswith("_") else 0
    return len(names) - (names[:1] in (["self"], ["cls"])) + options


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_classes_functions_and_signatures_are_short(path: Path) -> None:
    problems = []
    for name, node in definitions(path):
        if isinstance(node, ast.ClassDef):
            methods = [member for member in node.body if isinstance(member, Function)]
            if len(methods) > METHODS:
                problems.append(f"class {name} has {len(methods)} methods, at most {METHODS}")
        elif isinstance(node, Function):
            if lines_without_docstring(node) > LINES:
                problems.append(f"{name} has {lines_without_docstring(node)} lines, at most {LINES}")
            if parameters(node) > PARAMETERS:
                problems.append(f"{name} takes {parameters(node)} parameters, at most {PARAMETERS}")
    assert not problems, problems
