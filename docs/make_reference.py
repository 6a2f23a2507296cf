"""Write docs/reference/criteria and docs/reference/schedules: a page for each built-in, from docstring and options.

    python docs/make_reference.py

A test compares the pages with what this gives, so a page cannot tell what the code does not.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunekit.plugins.manager import make_manager
from prunekit.plugins.registry import Registered, Registry, collect

DOCS = Path(__file__).parent / "reference"
ROOT = DOCS.parents[1]
PACKAGE = "prunekit"


def pages() -> Iterator[tuple[Path, str]]:
    """Yield (path, text) of every page."""
    registry: Registry = collect(make_manager())
    for kind, entries in (("criteria", registry.criteria), ("schedules", registry.schedules)):
        built_in = {name: entry for name, entry in entries.items() if entry.source.package == PACKAGE}
        for name, entry in built_in.items():
            yield DOCS / kind / f"{name}.md", page_of(kind, name, entry)


def page_of(kind: str, name: str, entry: Registered[Any]) -> str:
    """Return the page of one criterion or schedule."""
    flag = {"criteria": "criterion", "schedules": "schedule"}[kind]
    summary, _, rest = (inspect.getdoc(entry.cls) or "").partition("\n")
    source = Path(inspect.getsourcefile(entry.cls) or "").relative_to(ROOT)
    parts = [
        f"# {name}",
        summary,
        rest.strip(),
        f"```bash\nprunekit run --{flag} {name}\n```",
        f"Source: [{source}](../../../{source}). See [all {kind}](../../guide/criteria_and_schedules.md).",
        options_table(flag, entry),
    ]
    return "\n\n".join(filter(None, (part.replace("``", "`") for part in parts))) + "\n"


def options_table(flag: str, entry: Registered[Any]) -> str:
    """Return the options as a Markdown table."""
    if not entry.options:
        return "It has no options."
    rows = (
        f"| `{option.name}` | {option.expected} | {option.default_text} | {option.meaning} |"
        for option in entry.options.values()
    )
    return "\n".join(
        [f"Options, as `-o {flag}.NAME=VALUE`:\n", "| name | type | default | meaning |", "| --- " * 4 + "|", *rows]
    )


def write() -> None:
    """Write all pages and remove those that belong to nothing any more."""
    made = dict(pages())
    for kind in ("criteria", "schedules"):
        (DOCS / kind).mkdir(exist_ok=True)
        for path in set((DOCS / kind).glob("*.md")) - made.keys():
            path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
