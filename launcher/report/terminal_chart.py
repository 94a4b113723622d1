"""A curve in the terminal: braille dots, or stars where the terminal knows no braille. Knows only numbers."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import IO

from launchyard.launcher.format import can_draw

Point = tuple[float, float]
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of each dot, rows from the top


def draw(
    points: Sequence[Point],
    *,
    width: int = 64,
    height: int = 12,
    braille: bool = True,
    x_form: Callable[[float], str] = "{:g}".format,
) -> list[str]:
    """Lines of a chart of (x, y) points, x ascending; none if there are fewer than two finite points."""
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) < 2:
        return []
    across, down = (2, 4) if braille else (1, 1)
    columns = _columns(points, width * across)
    low = min(columns)
    high = max(columns)
    grid = [[0] * width for _ in range(height)]
    for x, (y0, y1) in enumerate(zip([columns[0], *columns], columns, strict=False)):
        rows = sorted(round((high - y) / ((high - low) or 1.0) * (height * down - 1)) for y in (y0, y1))
        for row in range(rows[0], rows[1] + 1):
            grid[row // down][x // across] |= _DOTS[row % 4][x % 2] if braille else 1
    lines = []
    for row, cells in enumerate(grid):
        label = high if row == 0 else low if row == height - 1 else None
        body = "".join(_cell(cell, braille) for cell in cells).rstrip()
        edge = "┤" if braille else "|"
        lines.append(f"{label:>8.3f} {edge}{body}" if label is not None else f"{'':>8} {'│' if braille else '|'}{body}")
    first = x_form(points[0][0])
    last = x_form(points[-1][0])
    return [*lines, f"{'':>10}{first}{last.rjust(max(1, width - len(first)))}"]


def _cell(cell: int, braille: bool) -> str:
    if not cell:
        return " "
    return chr(0x2800 + cell) if braille else "*"


def overlay(
    curves: Sequence[tuple[str, Sequence[Point]]], *, paint: Sequence[Callable[[str], str]] = (), height: int = 14
) -> list[str]:
    """Lines of a chart of several curves over one x axis, each drawn with its own letter; * where two meet.

    paint: a colour for each; without it the letters stand alone. None of it if a curve has no two finite points.
    """
    finite = [(mark, [point for point in points if math.isfinite(point[1])]) for mark, points in curves]
    drawn = [(mark, points) for mark, points in finite if len(points) > 1]
    if len(drawn) < 2:
        return []
    start = min(points[0][0] for _, points in drawn)
    end = max(points[-1][0] for _, points in drawn)
    width = 64
    grid = [[" "] * width for _ in range(height)]
    columns = [(mark, *_placed(points, start, end, width)) for mark, points in drawn]
    low = min(min(values) for _, _, values in columns)
    high = max(max(values) for _, _, values in columns)
    for mark, begin, values in columns:
        for x, value in enumerate(values, begin):
            row = round((high - value) / ((high - low) or 1.0) * (height - 1))
            grid[row][x] = mark if grid[row][x] == " " else "*"
    colours = {mark: colour for (mark, _), colour in zip(curves, paint, strict=False)}
    lines = []
    for row, cells in enumerate(grid):
        label = f"{high:>8.3f}" if row == 0 else f"{low:>8.3f}" if row == height - 1 else " " * 8
        body = "".join(colours.get(cell, str)(cell) for cell in "".join(cells).rstrip())
        lines.append(f"{label} |{body}")
    left = f"{start:g}"
    return [*lines, f"{'':>10}{left}{f'{end:g}'.rjust(max(1, width - len(left)))}"]


def _placed(points: Sequence[Point], start: float, end: float, width: int) -> tuple[int, list[float]]:
    """The first column of a curve that may be shorter than the chart, and its values from there on."""
    span = (end - start) or 1.0
    begin, last = (round((x - start) / span * (width - 1)) for x in (points[0][0], points[-1][0]))
    return begin, _columns(points, last - begin + 1)


def _columns(points: Sequence[Point], width: int) -> list[float]:
    """The mean y of each column; straight lines across columns in which no point falls."""
    start = points[0][0]
    span = (points[-1][0] - points[0][0]) or 1.0
    buckets: dict[int, list[float]] = {}
    for x, y in points:
        buckets.setdefault(round((x - start) / span * (width - 1)), []).append(y)
    known = {column: sum(bucket) / len(bucket) for column, bucket in sorted(buckets.items())}
    found = [known[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(known.items()):
        found += [y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in range(x0 + 1, x1 + 1)]
    return found


def sparkline(values: Sequence[float], *, width: int = 40, blocks: bool = True) -> str:
    """One line of at most `width` characters, each the mean of its share of the finite values; empty without any."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    count = min(width, len(values))
    bounds = [round(n * len(values) / count) for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    signs = "▁▂▃▄▅▆▇█" if blocks else "_.-~=+*#"
    low = min(means)
    high = max(means)
    span = (high - low) or 1.0
    return "".join(signs[round((mean - low) / span * (len(signs) - 1))] for mean in means)


def loss_chart(points: Sequence[Point], *, of: str, out: IO[str] = sys.stdout) -> list[str]:
    """The training loss over steps, `of` a token or a pair; nothing for fewer than two points."""
    lines = draw(points, braille=can_draw(out))
    return [f"loss (nats per {of}) over steps", *lines] if lines else []
