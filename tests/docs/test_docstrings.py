"""The examples in docstrings are true: each ``>>>`` line runs and prints what stands below it."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import prunekit

ROOT = Path(prunekit.__file__).parent
WITH_EXAMPLES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_module_run(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(
        importlib.import_module(name), extraglobs={"prunekit": prunekit, "torch": torch, "nn": torch.nn}
    )
    assert result.attempted > 0
    assert result.failed == 0
