"""Draw the rooms of both packages and the arrows between them, as they are in the imports.

python docs/draw_rooms.py            writes docs/images/rooms.svg
python docs/draw_rooms.py --check    says whether the committed drawing is the present one

A room is a folder of `workflow` or `gnnscale`, or a file beside them. Every import points down. An arrow that follows from
two others is not drawn; the tables of docs/architecture.md list all of them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DRAWING = ROOT / "docs" / "images" / "rooms.svg"
PACKAGES = ("workflow", "gnnscale")
TITLES = {"workflow": "workflow: on the login node", "gnnscale": "gnnscale: where the work is done"}

WIDTH, HEIGHT, BEND, ACROSS, DOWN = 118, 30, 8, 16, 36  # pixels: a box, a bend of an arrow, the space between two
MARGIN, TITLE = 22, 40  # pixels
COLOURS = {"workflow": "#0b5c8a", "gnnscale": "#7a4a00", "shared": "#1f7a3d"}


class Room(NamedTuple):
    """A folder or a file with what it holds in one sentence and the rooms that it imports."""

    name: str  # package/room
    purpose: str
    imports: frozenset[str]

    @property
    def package(self) -> str:
        return self.name.split("/")[0]


# ------------------------------------------------------------------------------------------------------------- reading
def room_of(module: str) -> str | None:
    """Return the room of a dotted name; None for other packages and for a package itself."""
    package, _, rest = module.partition(".")
    return f"{package}/{rest.split('.')[0]}" if package in PACKAGES and rest else None


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports when it runs; imports for type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def rooms() -> dict[str, Room]:
    """Read every room of both packages from the disk."""
    imports: dict[str, set[str]] = {}
    purposes: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            inside = path.relative_to(ROOT / package)
            if inside.parts == ("__init__.py",):
                continue
            name = f"{package}/{inside.with_suffix('').parts[0]}"
            found = {room for module in imported(path) if (room := room_of(module))}
            imports.setdefault(name, set()).update(found - {name})
            if len(inside.parts) == 1 or inside.parts[1:] == ("__init__.py",):
                about = ast.get_docstring(ast.parse(path.read_text())) or ""
                purposes[name] = " ".join(about.split("\n\n")[0].split())
    there = set(imports)
    return {
        name: Room(name, purposes.get(name, ""), frozenset(found & there)) for name, found in sorted(imports.items())
    }


# ------------------------------------------------------------------------------------------------------------- ordering
def layers(package: str) -> dict[str, int]:
    """Count the rooms of a package from the bottom: one that imports nothing of its package is 0."""
    inside = {name: room for name, room in rooms().items() if room.package == package}
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise SystemExit(f"the imports go in a circle: {' -> '.join([*above[above.index(name) :], name])}")
        if name not in heights:
            below = [height(other, (*above, name)) for other in inside[name].imports if other in inside]
            heights[name] = 1 + max(below, default=-1)
        return heights[name]

    for name in inside:
        height(name)
    return heights


def from_top_to_bottom(package: str) -> list[Room]:
    heights = layers(package)
    return [rooms()[name] for name in sorted(heights, key=lambda name: (-heights[name], name))]


def reachable(start: str) -> set[str]:
    """Return all rooms below one, over any number of imports."""
    seen: set[str] = set()
    left = list(rooms()[start].imports)
    while left:
        if (name := left.pop()) not in seen:
            seen.add(name)
            left += rooms()[name].imports
    return seen


def drawn_arrows(package: str) -> list[tuple[str, str]]:
    """Return the arrows within a package, without those that follow from two others."""
    found = []
    for room in from_top_to_bottom(package):
        below = [name for name in room.imports if name.startswith(package)]
        found += [
            (room.name, name) for name in sorted(below) if not any(name in reachable(o) for o in below if o != name)
        ]
    return found


# ------------------------------------------------------------------------------------------------------------- drawing
Place = tuple[float, float]  # the middle of an upper edge


def routes(package: str) -> list[list[str]]:
    """Return each drawn arrow as the rooms at its ends and a bend, called by the arrow, in every layer between them."""
    heights = layers(package)
    return [
        [a, *(f"{a}>{b}@{layer}" for layer in range(heights[a] - 1, heights[b], -1)), b]
        for a, b in drawn_arrows(package)
    ]


def in_layers(package: str) -> list[list[str]]:
    """Order rooms and bends in each layer, from the top, by sweeps towards the mean place of their neighbours."""
    heights, ways = layers(package), routes(package)
    heights |= {name: int(name.split("@")[1]) for way in ways for name in way[1:-1]}
    rows = [sorted(name for name in heights if heights[name] == k) for k in range(max(heights.values()), -1, -1)]
    steps = [pair for way in ways for pair in pairwise(way)]
    for sweep in range(8):
        down = sweep % 2 == 0
        at = {name: (k + 0.5) / len(row) for row in rows for k, name in enumerate(row)}
        for row in rows if down else rows[::-1]:
            near = {name: [at[b if a == name else a] for a, b in steps if name == (b if down else a)] for name in row}
            row.sort(key=lambda name: (sum(near[name]) / len(near[name]) if near[name] else at[name], name))
            at |= {name: (k + 0.5) / len(row) for k, name in enumerate(row)}
    return rows


def breadth(name: str) -> int:
    return BEND if "@" in name else WIDTH


def places(package: str, left: float) -> dict[str, Place]:
    """Give rooms and bends their places, each layer in the middle of the package's columns."""
    rows = in_layers(package)
    wide = [sum(breadth(name) + ACROSS for name in row) - ACROSS for row in rows]
    found: dict[str, Place] = {}
    for k, row in enumerate(rows):
        x = left + (max(wide) - wide[k]) / 2
        for name in row:
            found[name] = (x + breadth(name) / 2, TITLE + MARGIN + k * (HEIGHT + DOWN))
            x += breadth(name) + ACROSS
    return found


def box(room: Room, at: Place, shared: bool) -> str:
    x, y = at
    colour = COLOURS["shared" if shared else room.package]
    return (
        f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#fff" stroke="{colour}" '
        f'stroke-width="1.5"/><text x="{x:g}" y="{y + HEIGHT / 2 + 4.5:g}" fill="{colour}">{room.name.split("/")[1]}</text>'
    )


def arrow(stops: list[Place]) -> str:
    """Draw a curve through its stops, upright where it passes a layer."""
    x, y = stops[0]
    path, y = f"M{x:g} {y + HEIGHT:g}", y + HEIGHT
    for k, (x2, top) in enumerate(stops[1:], 2):
        end = k == len(stops)
        y2 = top - 5 if end else top
        middle = (y + y2) / 2
        path += f"C{x:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}" + ("" if end else f"V{top + HEIGHT:g}")
        x, y = x2, top + HEIGHT
    return f'<path d="{path}" marker-end="url(#head)"/>'


def drawing() -> str:
    """Return both packages side by side, as SVG."""
    shared = {name for room in rooms().values() for name in room.imports if room.package != name.split("/")[0]}
    lines, left, bottom = [], float(MARGIN), 0.0
    for package in PACKAGES:
        at = places(package, left)
        right = max(x + breadth(name) / 2 for name, (x, _) in at.items())
        bottom = max(bottom, *(y + HEIGHT for _, y in at.values()))
        lines.append(
            f'<text class="title" x="{(left + right) / 2:g}" y="26" fill="{COLOURS[package]}">{TITLES[package]}</text>'
        )
        lines += [arrow([at[name] for name in way]) for way in routes(package)]
        lines += [box(rooms()[name], place, name in shared) for name, place in at.items() if "@" not in name]
        left = right + 2.5 * MARGIN
    width, height = left - 1.5 * MARGIN, bottom + 2.2 * MARGIN
    lines.append(
        f'<text class="note" x="{width / 2:g}" y="{height - 14:g}" fill="{COLOURS["shared"]}">green: workflow imports these '
        "rooms of gnnscale, and no other</text>"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="13" '
        'text-anchor="middle"><style>.title{font-size:15px;font-weight:bold}.note{font-size:12px}path{fill:none;stroke:#888}'
        '</style><defs><marker id="head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8Z" style="fill:#888;stroke:none"/></marker></defs>'
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    )
    return "\n".join([head, *lines, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        same = DRAWING.exists() and DRAWING.read_text() == drawing()
        print(
            "the drawing is the present one"
            if same
            else f"{DRAWING.relative_to(ROOT)} is out of date; run: python docs/draw_rooms.py"
        )
        return 0 if same else 1
    DRAWING.parent.mkdir(exist_ok=True)
    DRAWING.write_text(drawing())
    print(DRAWING.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
