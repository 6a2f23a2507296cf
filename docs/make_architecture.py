"""Draw docs/architecture.svg from the imports of the package.

    python docs/make_architecture.py

A test compares the picture with the code. A room stands one floor above the highest room that it imports. An arrow
points to an imported room; arrows that others imply (A -> C beside A -> B -> C) are left out.
"""

import ast
from collections.abc import Mapping
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "prunekit"
PICTURE = DOCS / "architecture.svg"

WIDTH, BOX, HEIGHT, FLOOR, MARGIN = 960, 190, 56, 104, 28

CAPTIONS = {
    "files": "bytes on disk",
    "distributed": "what processes share",
    "masks": "which weights are kept",
    "layers": "a network as layers",
    "contracts": "what plugins implement",
    "criteria": "built-in criteria",
    "schedules": "built-in schedules",
    "reporting": "built-in listeners",
    "plugins": "hooks and registry",
    "pruning": "one mask update",
    "runs": "from recipe to results",
    "deployment": "a pruned network afterwards",
    "integrations": "foreign trainers",
    "testing": "kit for plugin authors",
    "cli": "commands",
}

STYLE = """
.room { fill: #eef2f7; stroke: #44546a; stroke-width: 1.2 }
.name { font: 600 16px system-ui, sans-serif; fill: #1b2733; text-anchor: middle }
.text { font: 12px system-ui, sans-serif; fill: #44546a; text-anchor: middle }
.arrow { fill: none; stroke: #7a8aa0; stroke-width: 1.4; marker-end: url(#head) }
.head { fill: #7a8aa0 }
@media (prefers-color-scheme: dark) {
  .room { fill: #26313d; stroke: #9fb0c5 }
  .name { fill: #f0f4f8 }
  .text { fill: #b9c7d8 }
}
"""

HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="head" d="M0 0 L8 4 L0 8 Z"/></marker>'
)


def imports() -> dict[str, set[str]]:
    """Return room -> the rooms that its modules import; ``errors``, which every room imports, is left out."""
    found: dict[str, set[str]] = {path.parent.name: set() for path in PACKAGE.glob("*/__init__.py")}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in found:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunekit."):
                found[room].add((node.module or "").split(".")[1])
    return {room: {other for other in others if other in found and other != room} for room, others in found.items()}


def floors(rooms: Mapping[str, set[str]]) -> dict[str, int]:
    """Return room -> floor, from 0: one above the highest room that it imports."""
    floor: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        floor[room] = 1 + max((floor[other] for other in rooms[room]), default=-1)
    return floor


def without_implied(rooms: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the arrows that no path through other rooms implies."""
    reached: dict[str, set[str]] = {}
    for room in TopologicalSorter(rooms).static_order():
        reached[room] = rooms[room].union(*(reached[other] for other in rooms[room]))
    return sorted(
        (room, other)
        for room, others in rooms.items()
        for other in others
        if not any(other in reached[between] for between in others)
    )


def draw() -> str:
    """Return the picture as SVG."""
    rooms = imports()
    floor = floors(rooms)
    top = max(floor.values())
    places: dict[str, tuple[float, float]] = {}
    for level in range(top + 1):
        names = sorted(name for name in floor if floor[name] == level)
        gap = WIDTH / len(names)
        for number, name in enumerate(names):
            places[name] = gap * (number + 0.5), MARGIN + (top - level) * FLOOR
    height = 2 * MARGIN + top * FLOOR + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">The rooms of prunekit: each imports only rooms below it</title>',
        f"<style>{STYLE}</style>",
        f"<defs>{HEAD}</defs>",
    ]
    for room, other in without_implied(rooms):
        (x, y), (to_x, to_y) = places[room], places[other]
        start, bend = y + HEIGHT, (to_y - y - HEIGHT) / 2
        lines.append(
            f'<path class="arrow" d="M{x:.0f} {start:.0f} C{x:.0f} {start + bend:.0f} '
            f'{to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"/>'
        )
    for room, (x, y) in sorted(places.items()):
        lines.append(
            f'<rect class="room" x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
            f'<text class="name" x="{x:.0f}" y="{y + 24:.0f}">{escape(room)}/</text>'
            f'<text class="text" x="{x:.0f}" y="{y + 43:.0f}">{escape(CAPTIONS[room])}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
