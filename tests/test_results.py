"""No figure of the tables in docs is typed: every table of results is the one that its summary.json gives."""

import json
from pathlib import Path

import cattrs
import pytest

from prunekit.summary import Summary, differences_table, figures_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("results.md", "sparsest.md"))
SUMMARIES = sorted((DOCS / "results").glob("*.json"))


def tables_of(page: str) -> list[list[list[str]]]:
    """Return the tables of a page: lines of cells, without the line below the head."""
    tables, lines = [], []
    for line in [*page.splitlines(), ""]:
        if line.startswith("| "):
            lines.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")])
        elif lines:
            tables.append([lines[0], *lines[2:]])
            lines = []
    return tables


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_both_tables_of_a_summary_stand_on_the_page(path: Path) -> None:
    summary = cattrs.structure(json.loads(path.read_text(encoding="utf-8")), Summary)
    for head, lines in (figures_table(summary), differences_table(summary)):
        assert [head, *lines] in tables_of(PAGE), f"make the tables of {path.name} again, with prunekit sweep"


def test_there_are_summaries_and_each_is_linked() -> None:
    assert SUMMARIES
    for path in SUMMARIES:
        assert f"(results/{path.name})" in PAGE
