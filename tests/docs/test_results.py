"""No figure of the tables in docs is typed: every table of results is the one that its summary.json gives."""

import json
from pathlib import Path

import cattrs
import pytest

from prunekit.runs.sweep.summary import Summary
from prunekit.runs.sweep.summary_tables import differences_table, figures_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = "\n".join((RESULTS / name).read_text(encoding="utf-8") for name in ("paper.md", "sparsest.md", "mnist.md"))
SUMMARIES = sorted((RESULTS / "data").glob("*.json"))


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


def pivot(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return a table of the first metric: a line for each way to prune, a column for each structure."""
    pruned = [row for row in summary.rows if row.kind == "pruned"]
    structures = list(dict.fromkeys(row.structure for row in pruned))
    lines: dict[str, dict[str, str]] = {}
    for row in pruned:
        mean = row.metrics[summary.metrics[0]]
        name = ", ".join(filter(None, (row.criterion, row.allocation, row.schedule)))
        lines.setdefault(name, {})[row.structure] = f"{mean.value:.4f} ± {mean.standard_error:.4f}"
    table = [[name, *(figures[structure] for structure in structures)] for name, figures in lines.items()]
    return [summary.metrics[0], *(f"`{structure}`" for structure in structures)], table


@pytest.mark.parametrize("path", sorted((RESULTS / "data").glob("mnist-*.json")), ids=lambda path: path.stem)
def test_the_short_table_of_a_comparison_is_that_of_its_summary(path: Path) -> None:
    head, lines = pivot(cattrs.structure(json.loads(path.read_text(encoding="utf-8")), Summary))
    assert [head, *lines] in tables_of(PAGE)


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_both_tables_of_a_summary_stand_on_the_page(path: Path) -> None:
    summary = cattrs.structure(json.loads(path.read_text(encoding="utf-8")), Summary)
    for head, lines in (figures_table(summary), differences_table(summary)):
        assert [head, *lines] in tables_of(PAGE), f"make the tables of {path.name} again, with prunekit sweep"


def test_there_are_summaries_and_each_is_linked() -> None:
    assert SUMMARIES
    for path in SUMMARIES:
        assert f"(data/{path.name})" in PAGE
