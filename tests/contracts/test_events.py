"""Every record that a plugin's author reads documents its fields one by one."""

import re
from pathlib import Path

import attrs
import pytest

from prunekit.contracts import events
from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.events import StageFinished
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.training import Training

ROOT = Path(__file__).parents[2]
EVENTS = [record for record in vars(events).values() if attrs.has(record) and record.__module__ == events.__name__]


@pytest.mark.parametrize("record", [*EVENTS, Evaluation, Training, Seeds], ids=lambda record: record.__name__)
def test_the_docstring_lists_each_field_in_order(record: type[attrs.AttrsInstance]) -> None:
    _, _, listed = (record.__doc__ or "").partition("    Attributes:\n")
    assert re.findall(r"^        (\w+): ", listed, re.MULTILINE) == [field.name for field in attrs.fields(record)]


@pytest.mark.parametrize("record", EVENTS, ids=lambda record: record.__name__)
def test_a_docs_page_names_each_field(record: type[attrs.AttrsInstance]) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    row = re.search(rf"^\| `{record.__name__}` \|.*$", pages, re.MULTILINE)
    assert row is not None
    assert {field.name for field in attrs.fields(record)} <= set(re.findall(r"`(\w+)`", row[0]))


def test_weights_left_is_the_density_of_all_prunable_layers() -> None:
    finished = StageFinished(
        index=1,
        name="pruned",
        requested={"a": 0.25},
        kept={"a": 2, "b": 4},
        weights={"a": 8, "b": 4},
        evaluation=Evaluation("accuracy", {"accuracy": 0.9}),
        seconds=1.0,
    )
    assert finished.weights_left == 0.5
