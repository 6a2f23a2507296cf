"""The examples in the docstrings of the contracts are plugins that pass the checks for authors."""

import inspect
import re
import textwrap
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import prunekit
from prunekit.testing import check_criterion, check_schedule, check_task

IMAGES, LABELS = torch.rand(640, 1, 28, 28), torch.arange(640) % 10


def example_of(contract: type) -> type:
    """Run the example below the first line of a docstring, and return the class that it defines."""
    source = re.search(r"^    @?\w.*?(?=^\S|\Z)", inspect.getdoc(contract) or "", re.MULTILINE | re.DOTALL)
    assert source is not None
    names: dict[str, Any] = {name: getattr(prunekit, name) for name in dir(prunekit)}
    names |= {"attrs": attrs, "torch": torch, "Tensor": Tensor, "nn": nn, "cross_entropy": cross_entropy}
    names |= {"IMAGES": IMAGES, "LABELS": LABELS, "TEST_IMAGES": IMAGES, "TEST_LABELS": LABELS}
    before = set(names)
    exec(textwrap.dedent(source[0]), names)  # noqa: S102 - our own docstring
    (defined,) = names.keys() - before - {"__builtins__"}
    return names[defined]


@pytest.mark.thorough
@pytest.mark.parametrize("contract", [prunekit.Criterion, prunekit.NetworkCriterion], ids=lambda cls: cls.__name__)
def test_the_example_of_a_criterion_passes_the_checks(contract: type) -> None:
    check_criterion(example_of(contract))


def test_the_example_of_a_schedule_passes_the_checks() -> None:
    check_schedule(example_of(prunekit.Schedule))


def test_the_example_of_a_task_passes_the_checks() -> None:
    check_task(example_of(prunekit.Task))


def test_the_example_of_a_layer_view_sees_a_linear_layer() -> None:
    module = nn.Linear(3, 2)
    view = example_of(prunekit.LayerView)(module)
    assert view.shape("fc") == prunekit.LayerShape("fc", "scaled", 1, 2, (3,))
    assert view.to_matrix(view.weight).shape == (1, 2, 3)
    assert view.inputs_at(torch.rand(4, 3), slice(0, 1)).shape == (1, 1, 4, 3)
    assert view.outputs_at(torch.rand(4, 2), slice(0, 1)).shape == (1, 1, 4, 2)
