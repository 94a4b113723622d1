"""Drawings as SVG: curves, time lines, stacked bars, and loss.svg. Knows only numbers, words and the names of colours.

Colours are CSS variables (`--c0` … and names), so that the page around decides what is light and what is dark. A file
that stands alone has colours of its own, without variables: not only browsers show it.
"""

from __future__ import annotations

import itertools
import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH = 1040.0
LEFT = 60.0
RIGHT = 14.0
TOP = 12.0
BOTTOM = 26.0
MAX_POINTS = 1000
MAX_DOTS = 120  # of more, dots hide each other and what lies below: they are a line
MAX_MARKS = 30  # and more marks hide the curve: they stand on the axis alone
CELL = 4.0  # places of a time line: what is smaller shares one
FILE_WIDTH = 720.0
FILE_HEIGHT = 400.0
FILE_HEAD = 38.0
FILE_FOOT = 18.0
FILE_COLOURS = {
    "c0": "#1f77b4", "c1": "#d62728", "c2": "#2ca02c", "c3": "#9467bd", "c4": "#8c564b", "muted": "#777",
}  # fmt: skip
FILE_STYLE = (
    "text{font:12px sans-serif;fill:#555} .title{font-size:15px;fill:#000} .grid{stroke:#e4e4e4} "
    ".line{fill:none;stroke:currentColor;stroke-width:1.5} .dot{fill:#fff;stroke:currentColor;stroke-width:1.8} "
    ".named{fill:currentColor} .faint{opacity:.35} .mark line{stroke:currentColor;stroke-dasharray:4 3}"
)
_INSIDE = FILE_HEIGHT - FILE_HEAD - FILE_FOOT  # of a file, the drawing itself
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A series: `colour` is a CSS variable's name. `dots`: marks instead of a line; `faint`: a background series."""

    points: Sequence[Point]
    colour: str
    name: str = ""
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x."""

    x: float
    text: str
    colour: str = "muted"


@dataclass(frozen=True)
class Bar:
    """A piece of a lane of a time line, from x0 to x1."""

    x0: float
    x1: float
    colour: str
    text: str


@dataclass(frozen=True)
class Lane:
    name: str
    bars: Sequence[Bar]
    marks: Sequence[Mark] = ()


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, about so many; one alone if the bounds are the same. `whole`: no fractions."""
    span = high - low
    if not math.isfinite(span) or span < 1e-11:  # ticks are rounded to 12 places
        return [low]
    raw = span / max(1, count)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.65)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def curve(
    lines: Sequence[Line],
    *,
    label: str,
    width: float = WIDTH,
    height: float = 260.0,
    marks: Sequence[Mark] = (),
    form: Callable[[float], str] = lambda value: f"{value:g}",
    x_form: Callable[[float], str] = lambda value: f"{value:,.0f}",
    from_zero: bool = False,
) -> str:
    """Curves over one x axis of steps; `label` describes it for screen readers. Empty without a finite point."""
    lines = [Line(thin(_finite(line.points)), line.colour, line.name, line.dots, line.faint) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_bounds = (min(x for x, _ in points), max(x for x, _ in points))
    low, high = _bounds([y for line in lines if not line.faint for _, y in line.points] or [y for _, y in points])
    frame = _Frame(*x_bounds, 0.0 if from_zero else low, high, width, height)
    parts = [_open(width, height, label), *frame.grid(form, x_form)]
    inside = [mark for mark in marks if x_bounds[0] <= mark.x <= x_bounds[1]]
    crowded = len(inside) > MAX_MARKS
    inside = _apart(inside, frame.x, CELL) if crowded else inside
    parts += [frame.mark(mark, short=crowded) for mark in inside]
    parts += [frame.line(line) for line in lines]
    return "".join([*parts, "</svg>"])


def loss_svg(train: Sequence[Point], validation: Sequence[Point], *, title: str) -> str:
    """A file of its own: loss in nats over steps, from (step, loss) points, ascending. Empty without a finite point."""
    lines = [
        Line(train, "c0", "training"),
        Line(validation, "c1", "validation"),
        Line(validation, "c1", "validation loss", dots=True),
    ]
    inner = curve(lines, label=title, width=FILE_WIDTH, height=_INSIDE)
    return _file(inner, title, {"training": "c0", "validation": "c1"}, "step")


def rates_svg(losses: Sequence[Point], smooth: Sequence[Point], *, title: str, marks: Sequence[Mark] = ()) -> str:
    """A file of its own: losses over learning rates, from (rate, loss) points; each decade of rates is as wide."""
    lines = [Line(_by_exponent(losses), "c0", "loss", faint=True), Line(_by_exponent(smooth), "c1", "smoothed")]
    inner = curve(
        lines,
        label=title,
        width=FILE_WIDTH,
        height=_INSIDE,
        marks=[Mark(math.log10(mark.x), mark.text, mark.colour) for mark in marks],
        x_form=lambda exponent: f"{10**exponent:.0e}",
    )
    return _file(inner, title, {"loss": "c0", "smoothed": "c1"}, "learning rate")


def growth_svg(grown: Mapping[str, tuple[Sequence[Point], Sequence[Point]]], *, title: str, below: str) -> str:
    """A file of its own: how things grow, by name (measured, expected) points of positive numbers; expected are faint.

    Both axes double from line to line, and all begin at one place, so a power of x is a straight line from there.
    """
    colours = dict(zip(grown, itertools.cycle(name for name in FILE_COLOURS if name != "muted")))
    lines = [
        Line(_doublings(points), colours[name], name, faint=bool(is_expected))
        for name, both in grown.items()
        for is_expected, points in enumerate(both)
    ]
    dots = [Line(_doublings(points), colours[name], name, dots=True) for name, (points, _) in grown.items()]
    inner = curve(
        [*lines, *dots],
        label=title,
        width=FILE_WIDTH,
        height=_INSIDE,
        form=lambda exponent: f"{2**exponent:.3g}",
        x_form=lambda exponent: f"{2**exponent:,.0f}",
    )
    return _file(inner, title, colours, below)


def _by_exponent(points: Sequence[Point]) -> list[Point]:
    return [(math.log10(x), y) for x, y in points]


def _doublings(points: Sequence[Point]) -> list[Point]:
    """How often each number has doubled since the first point."""
    return [(math.log2(x / points[0][0]), math.log2(y / points[0][1])) for x, y in points]


def _file(inner: str, title: str, names: Mapping[str, str], below: str) -> str:
    """A drawing with its title, the names of its lines in their colours, and what its x axis counts."""
    if not inner:
        return ""
    right = f'x="{FILE_WIDTH - RIGHT:g}" y="24" text-anchor="end"'
    spans = (f'<tspan class="named" style="color:var(--{name})">{text}</tspan>' for text, name in names.items())
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {FILE_WIDTH:g} {FILE_HEIGHT:g}" '
        f'width="{FILE_WIDTH:g}" height="{FILE_HEIGHT:g}">',
        f"<style>{FILE_STYLE}</style>",
        f'<rect width="{FILE_WIDTH:g}" height="{FILE_HEIGHT:g}" fill="#fff"/>',
        f'<text class="title" x="{LEFT:g}" y="24">{escape(title)}</text>',
        f"<text {right}>{' '.join(spans)}</text>",
        f'<g transform="translate(0,{FILE_HEAD:g})">{inner}</g>',
        f'<text x="{FILE_WIDTH / 2:g}" y="{FILE_HEIGHT - 8:g}" text-anchor="middle">{below}</text>',
        "</svg>\n",
    ]
    return re.sub(r"var\(--(\w+)\)", lambda found: FILE_COLOURS[found[1]], "\n".join(drawn))


def thin(points: Sequence[Point]) -> list[Point]:
    """Means of equal runs of points, so that a long run draws fast and its noise does not hide its course."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


class Course:
    """The points of a line, added in order: of more than twice `most`, means of equal runs of them, as thin() makes
    them, so that no line is ever long. Points that are not finite are left out.
    """

    def __init__(self, most: int = 4096) -> None:
        self._xs = array("d")
        self._ys = array("d")
        self._most = most
        self._each = 1  # how many make one
        self._count = 0  # and how many of the next one are there
        self._sum = 0.0
        self._x = 0.0

    def add(self, x: float, y: float) -> None:
        if not math.isfinite(y):
            return
        self._x = x
        self._sum += y
        self._count += 1
        if self._count == self._each:
            self._close()
            if len(self._xs) == 2 * self._most:
                self._halve()

    def _close(self) -> None:
        self._xs.append(self._x)
        self._ys.append(self._sum / self._count)
        self._sum = 0.0
        self._count = 0

    def _halve(self) -> None:
        self._xs = self._xs[1::2]
        self._ys = array("d", ((one + other) / 2 for one, other in zip(self._ys[::2], self._ys[1::2], strict=True)))
        self._each *= 2

    def back_to(self, x: float) -> None:
        """Takes back what is after x."""
        while self._xs and self._xs[-1] > x:
            self._xs.pop()
            self._ys.pop()
        if self._count and self._x > x:
            self._sum = 0.0
            self._count = 0

    @property
    def points(self) -> list[Point]:
        rest = [(self._x, self._sum / self._count)] if self._count else []
        return [*zip(self._xs, self._ys, strict=True), *rest]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of the y axis: all values, with some padding."""
    low = min(values)
    high = max(values)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(0.0, low - pad) if low >= 0 else low - pad), high + pad


@dataclass(frozen=True)
class _Frame:
    """From numbers to places."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: float
    height: float

    def x(self, value: float) -> float:
        return LEFT + (self.width - LEFT - RIGHT) * (value - self.x0) / ((self.x1 - self.x0) or 1.0)

    def y(self, value: float) -> float:
        share = (self.y1 - value) / ((self.y1 - self.y0) or 1.0)
        return TOP + (self.height - TOP - BOTTOM) * min(1.0, max(0.0, share))

    def grid(self, form: Callable[[float], str], x_form: Callable[[float], str]) -> list[str]:
        parts = []
        for value in ticks(self.y0, self.y1, max(2, int(self.height // 55))):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{form(value)}</text>')
        for value in ticks(self.x0, self.x1, max(2, int(self.width // 100)), whole=True):
            x = self.x(value)
            anchor = "end" if x > self.width - RIGHT - 18 else "middle"
            attributes = f'x="{x:.1f}" y="{self.height - 8:.1f}" text-anchor="{anchor}"'
            parts.append(f'<text class="tick" {attributes}>{x_form(value)}</text>')
        return parts

    def line(self, line: Line) -> str:
        style = f'style="color:var(--{line.colour})"'
        if line.dots and len(line.points) <= MAX_DOTS:
            dots = (
                f'<circle class="dot" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3">'
                f"<title>{escape(line.name)} {y:.4g} at {x:g}</title></circle>"
                for x, y in line.points
            )
            return f"<g {style}>{''.join(dots)}</g>"
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points)
        return f'<polyline class="line{" faint" * line.faint}" {style} points="{points}"/>'

    def mark(self, mark: Mark, *, short: bool = False) -> str:
        x = self.x(mark.x)
        top = self.height - BOTTOM - 7 if short else TOP
        return (
            f'<g class="mark" style="color:var(--{mark.colour})"><line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" '
            f'y2="{self.height - BOTTOM:.1f}"/><title>{escape(mark.text)}</title></g>'
        )


def timeline(lanes: Sequence[Lane], *, label: str, form: Callable[[float], str], width: float = WIDTH) -> str:
    """Lanes over one axis of seconds, from the first piece on; each piece has its text as a tooltip."""
    if not lanes:
        return ""
    lane = 26.0
    gap = 10.0
    left = 110.0
    first = min((bar.x0 for one in lanes for bar in one.bars), default=0.0)
    end = max((bar.x1 for one in lanes for bar in one.bars), default=1.0) or 1.0
    height = TOP + len(lanes) * (lane + gap) + BOTTOM

    def x_of(value: float) -> float:
        return left + (width - left - RIGHT) * min(1.0, max(0.0, (value - first) / ((end - first) or 1.0)))

    parts = [_open(width, height, label)]
    for value in _time_ticks(first, end):
        x = x_of(value)
        anchor = "end" if x > width - RIGHT - 20 else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{height - BOTTOM:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8:.1f}" text-anchor="{anchor}">{form(value)}</text>')
    for number, one in enumerate(lanes):
        y = TOP + number * (lane + gap)
        parts.append(f'<text class="lane" x="0" y="{y + lane * 0.66:.1f}">{escape(one.name)}</text>')
        for bar in _joined([replace(bar, x0=x_of(bar.x0), x1=x_of(bar.x1)) for bar in one.bars]):
            parts.append(
                f'<rect class="bar" style="color:var(--{bar.colour})" x="{bar.x0:.1f}" y="{y:.1f}" '
                f'width="{max(1.2, bar.x1 - bar.x0):.1f}" height="{lane}"><title>{escape(bar.text)}</title></rect>'
            )
        for mark in _apart(one.marks, x_of, 2 * CELL):
            x = x_of(mark.x)
            parts.append(
                f'<path class="pin" style="color:var(--{mark.colour})" d="M{x:.1f},{y + lane + 1:.1f} l-3.5,6 h7 z">'
                f"<title>{escape(mark.text)}</title></path>"
            )
    return "".join([*parts, "</svg>"])


def _joined(bars: Sequence[Bar]) -> list[Bar]:
    """Bars in places of the drawing. Those of a colour that are smaller than a cell share one, which is as wide as all
    of them together.
    """
    found: list[Bar] = []
    cells: dict[tuple[str, int], list[Bar]] = {}
    for bar in bars:
        if bar.x1 - bar.x0 >= CELL:
            found.append(bar)
        else:
            cells.setdefault((bar.colour, int(bar.x0 // CELL)), []).append(bar)
    for some in cells.values():
        wide = sum(bar.x1 - bar.x0 for bar in some)
        found.append(replace(some[0], x1=some[0].x0 + wide, text=_and_more(some[0].text, len(some) - 1)))
    return found


def _apart(marks: Sequence[Mark], x_of: Callable[[float], float], cell: float) -> list[Mark]:
    """One mark for all that would stand in the same cell of the drawing."""
    cells: dict[int, list[Mark]] = {}
    for mark in marks:
        cells.setdefault(int(x_of(mark.x) // cell), []).append(mark)
    return [replace(some[0], text=_and_more(some[0].text, len(some) - 1)) for some in cells.values()]


def _and_more(text: str, count: int) -> str:
    return f"{text}, and {count} more here" if count else text


def _time_ticks(first: float, end: float) -> list[float]:
    """Places on an axis of seconds: whole seconds, minutes, hours or days."""
    sizes = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)
    size = next((size for size in sizes if (end - first) / size <= 8), 0)
    size = size or 604800 * math.ceil((end - first) / 604800 / 8)
    return [float(size * n) for n in range(math.ceil(first / size - 1e-9), int(end / size) + 1)]


def stack(parts: Sequence[tuple[str, float, str]], *, label: str, width: float = WIDTH, height: float = 34.0) -> str:
    """One bar of (name, amount, colour) pieces, side by side; empty if there is nothing."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return ""
    drawn = [_open(width, height, label)]
    x = 0.0
    for name, amount, colour in parts:
        share = amount / total
        drawn.append(
            f'<rect class="bar" style="color:var(--{colour})" x="{x:.2f}" y="0" width="{share * width:.2f}" '
            f'height="{height}"><title>{escape(name)} {share:.1%}</title></rect>'
        )
        if share > 0.08:
            drawn.append(
                f'<text class="inside" x="{x + share * width / 2:.1f}" y="{height / 2 + 4:.1f}" text-anchor="middle">'
                f"{share:.0%}</text>"
            )
        x += share * width
    return "".join([*drawn, "</svg>"])


def columns(parts: Sequence[tuple[str, float]], *, label: str, width: float = WIDTH, height: float = 200.0) -> str:
    """A column for each (name, amount), from the left; empty if there is nothing."""
    most = max((amount for _, amount in parts), default=0)
    if most <= 0:
        return ""
    drawn = [_open(width, height, label)]
    step = width / len(parts)
    room = height - 20  # above the names
    for number, (name, amount) in enumerate(parts):
        tall = amount / most * room
        drawn.append(
            f'<rect class="bar" style="color:var(--c0)" x="{number * step + 1:.2f}" y="{room - tall:.2f}" '
            f'width="{step - 2:.2f}" height="{tall:.2f}"><title>{escape(name)}: {amount:,.0f}</title></rect>'
            f'<text class="tick" x="{(number + 0.5) * step:.1f}" y="{height - 5:g}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
    return "".join([*drawn, "</svg>"])


def _open(width: float, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">'
    )
