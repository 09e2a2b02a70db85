"""The picture of the imports between packages, generated from the source, so that both always agree.

A hook of MkDocs: replaces `<!-- structure of PACKAGE -->` by an SVG. `python docs/hooks/structure.py mlfilter_core`
prints it.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PLACEHOLDER = re.compile(r"<!-- structure of (\w+) -->")

WIDTH, MARGIN = 960, 8
CHARACTER, PADDING = 8.1, 22  # width of a character in a box at 13.5 px; padding
MIN_WIDTH = 92
BEND, BEND_WIDTH = "|", 12  # place where an arrow passes a row
BOX, NOTE, ROW = 46, 16, 92  # heights: of a box, of its second line, from one row to the next
SWEEPS = 24  # passes that order the boxes in the rows; more change nothing

Graph = Mapping[str, frozenset[str]]


def on_page_content(html: str, **_: Any) -> str:
    """Puts the pictures into a page."""
    return PLACEHOLDER.sub(lambda found: draw(found[1]), html)


def imports_between_parts(package: str) -> dict[str, frozenset[str]]:
    """Returns the parts of a package, each with the other parts that its modules import.

    A part is a package or a module directly below `package`. Imports inside functions and below `TYPE_CHECKING` count;
    those of `if __name__ == "__main__":` do not, as no import runs them.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        part = _part(path.relative_to(REPOSITORY / package))
        if part != "__init__":
            found.setdefault(part, set()).update(_imported_parts(path, package))
    return {part: frozenset(others & found.keys() - {part}) for part, others in found.items()}


def rows_of(graph: Graph) -> list[list[str]]:
    """Returns the parts in rows: each part stands above all that it imports, as low as possible."""
    depth: dict[str, int] = {}

    def visit(part: str, path: tuple[str, ...] = ()) -> int:
        if part in path:
            raise ValueError(f"the parts import one another in a circle: {' > '.join((*path, part))}")
        if part not in depth:
            depth[part] = 1 + max((visit(other, (*path, part)) for other in sorted(graph[part])), default=-1)
        return depth[part]

    for part in graph:
        visit(part)
    rows: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for part in sorted(graph):
        rows[depth[part]].append(part)
    return rows[::-1]


def direct_imports(graph: Graph) -> dict[str, list[str]]:
    """Returns the imports without those that another import implies: `plan > config` where `plan > work > config`."""
    reached: dict[str, frozenset[str]] = {}

    def reach(part: str) -> frozenset[str]:
        if part not in reached:
            reached[part] = graph[part].union(*(reach(other) for other in graph[part]))
        return reached[part]

    return {
        part: [other for other in sorted(others) if not any(other in reach(third) for third in others - {other})]
        for part, others in graph.items()
    }


def draw(package: str) -> str:
    """Returns the picture of a package as SVG, in the colours of the page around it."""
    graph = imports_between_parts(package)
    rows, chains = _with_bends(rows_of(graph), direct_imports(graph))
    centres = _centres(_ordered(rows, chains))
    height = len(rows) * ROW - (ROW - BOX) + 2 * MARGIN
    parts = [
        f'<svg class="structure" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Packages of {package}: arrows '
        'lead from a package to those that it imports">',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>',
        *(_arrow([centres[place] for place in chain]) for chain in chains),
        *(_box(part, *centres[part], _size(package, part)) for part in graph),
    ]
    return "\n".join([*parts, "</svg>"])


def _part(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")


def _imported_parts(path: Path, package: str) -> Iterator[str]:
    module = ast.parse(path.read_text())
    module.body = [statement for statement in module.body if not _is_script(statement)]
    for node in ast.walk(module):
        names: Iterable[str] = ()
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith(f"{package}."):
                yield name.split(".")[1]


def _is_script(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def _with_bends(
    rows: Sequence[Sequence[str]], arrows: Mapping[str, Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the rows with a place wherever an arrow passes one, and each arrow as its list of places."""
    extended = [list(row) for row in rows]
    row_of = {part: number for number, row in enumerate(rows) for part in row}
    chains = []
    for part, others in arrows.items():
        for other in others:
            bends = {row: f"{BEND}{part} {other} {row}" for row in range(row_of[part] + 1, row_of[other])}
            for row, bend in bends.items():
                extended[row].append(bend)
            chains.append([part, *bends.values(), other])
    return extended, chains


def _ordered(rows: Sequence[Sequence[str]], chains: Sequence[Sequence[str]]) -> list[list[str]]:
    """Orders each row by where its neighbours stand, so that few arrows cross: Sugiyama's barycentres."""
    ordered = [list(row) for row in rows]
    neighbours: dict[str, set[str]] = {place: set() for row in rows for place in row}
    for chain in chains:
        for one, other in pairwise(chain):
            neighbours[one].add(other)
            neighbours[other].add(one)
    for _ in range(SWEEPS):
        for row in ordered:
            centres = _centres(ordered)
            row.sort(key=lambda place: _mean([centres[other][0] for other in neighbours[place]], centres[place][0]))
    return ordered


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _centres(rows: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    centres = {}
    for number, row in enumerate(rows):
        widths = [_width(place) for place in row]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(row) + 1)
        x = MARGIN + gap
        for place, width in zip(row, widths, strict=True):
            centres[place] = (x + width / 2, MARGIN + number * ROW + BOX / 2)
            x += width + gap
    return centres


def _width(place: str) -> float:
    return BEND_WIDTH if place.startswith(BEND) else max(MIN_WIDTH, len(place) * CHARACTER + PADDING)


def _size(package: str, part: str) -> str:
    folder = REPOSITORY / package / part
    modules = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    return f"{len(modules)} modules" if len(modules) > 1 else "module"


def _box(part: str, x: float, y: float, size: str) -> str:
    width = _width(part)
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - BOX / 2:.1f}" width="{width:.1f}" height="{BOX}" rx="7"/>'
        f'<text x="{x:.1f}" y="{y - 2:.1f}">{escape(part)}</text>'
        f'<text class="note" x="{x:.1f}" y="{y - 2 + NOTE:.1f}">{size}</text>'
    )


def _arrow(places: Sequence[tuple[float, float]]) -> str:
    (x, y), *others = places
    path = f"M{x:.1f} {y + BOX / 2:.1f}"
    for number, (next_x, next_y) in enumerate(others, 1):
        y1, y2 = y + BOX / 2, next_y - BOX / 2 - (2 if number == len(others) else 0)
        middle = (y1 + y2) / 2
        path += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {y2:.1f}"
        if number < len(others):
            path += f"V{next_y + BOX / 2:.1f}"
        x, y = next_x, next_y
    return f'<path class="arrow" d="{path}" marker-end="url(#to)"/>'


if __name__ == "__main__":
    print(draw(sys.argv[1]))
