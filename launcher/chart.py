"""A curve in the terminal: braille dots, or stars where the terminal knows no braille. Knows only numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of each dot, rows from the top


def draw(points: Sequence[Point], *, width: int = 64, height: int = 12, braille: bool = True) -> list[str]:
    """Lines of a chart of (x, y) points, x ascending; none if there are fewer than two finite points."""
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) < 2:
        return []
    across, down = (2, 4) if braille else (1, 1)
    columns = _columns(points, width * across)
    known = [y for y in columns if y is not None]
    low, high = min(known), max(known)
    grid = [[0] * width for _ in range(height)]
    for x, (y0, y1) in enumerate(_segments(columns)):
        rows = sorted(round((high - y) / ((high - low) or 1.0) * (height * down - 1)) for y in (y0, y1))
        for row in range(rows[0], rows[1] + 1):
            grid[row // down][x // across] |= _DOTS[row % 4][x % 2] if braille else 1
    lines = []
    for row, cells in enumerate(grid):
        label = high if row == 0 else low if row == height - 1 else None
        body = "".join(_cell(cell, braille) for cell in cells).rstrip()
        edge = "┤" if braille else "|"
        lines.append(f"{label:>8.3f} {edge}{body}" if label is not None else f"{'':>8} {'│' if braille else '|'}{body}")
    first, last = f"{points[0][0]:g}", f"{points[-1][0]:g}"
    return [*lines, f"{'':>10}{first}{last.rjust(max(1, width - len(first)))}"]


def _cell(cell: int, braille: bool) -> str:
    if not cell:
        return " "
    return chr(0x2800 + cell) if braille else "*"


def _columns(points: Sequence[Point], width: int) -> list[float | None]:
    """The mean y of each column; None where no point falls."""
    start, span = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    buckets: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        buckets[min(width - 1, int((x - start) / span * width))].append(y)
    return [sum(bucket) / len(bucket) if bucket else None for bucket in buckets]


def _segments(columns: Sequence[float | None]) -> list[tuple[float, float]]:
    """For each column the y where its line begins and ends; gaps are bridged level."""
    current = next(y for y in columns if y is not None)
    found = []
    for y in columns:
        before, current = current, current if y is None else y
        found.append((before, current))
    return found
