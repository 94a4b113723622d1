"""A comparison as one self-contained page of HTML, in the style of `launch report`: no network, no scripts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.launcher.format import clock, count
from launchyard.launcher.report.diff.comparison import SideBySide
from launchyard.launcher.report.diff.facts import letter
from launchyard.launcher.report.diff.sides import Side
from launchyard.launcher.report.diff.text import curve_lines, shown_value
from launchyard.launcher.report.html import HERE as STYLE
from launchyard.launcher.report.html import smooth
from launchyard.run.svg import Line, Mark, Point, curve
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from markupsafe import Markup

_HERE = Path(__file__).parent
_TITLES = {
    "recipe": "Recipe",
    "code": "Code",
    "data": "Data",
    "workers": "Workers",
    "environment": "Packages, machines",
}
_LONGEST = 400  # characters of a value


def diff_page(found: SideBySide) -> str:
    """The page. Every text but SVG and CSS is escaped; passwords in URLs are left out."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(_HERE)
    here = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, finalize=_without_secret
    )
    values: dict[str, object] = {
        "style": Markup((STYLE / "page.css").read_text()),  # noqa: S704
        "title": " and ".join(side.name for side in found.sides),
        "letters": [letter(number) for number in range(len(found.sides))],
        "sides": [_side(found, number) for number in range(len(found.sides))],
        "sentences": list(curve_lines(found)),
        "loss": _loss(found),
        "results": [(one.what, *one.texts) for one in found.results],
        "sections": [(title, _rows(found, name)) for name, title in _TITLES.items()],
        "code": [(one.text, one.note) for one in found.code_diffs],
        "by": "tokens" if found.by_tokens else "optimizer steps",
        "now": clock(time.time()),
    }
    return here.get_template("diff.html").render(values) + "\n"


def _without_secret(value: object) -> object:
    return redact(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _side(found: SideBySide, number: int) -> tuple[str, ...]:
    side = found.sides[number]
    if side.story is None:
        return (f"c{number}", letter(number), side.name, "recipe", "–", side.place)
    state = side.story.state
    steps = f"{state.step or 0:,}" + (f" of {state.max_steps:,}" if state.max_steps else "")
    return (f"c{number}", letter(number), side.name, state.state, steps, side.place)


def _rows(found: SideBySide, section: str) -> list[tuple[list[str], tuple[str, ...]]]:
    """Cells of each difference, and the notes below it."""
    return [
        ([one.what, *(shown_value(value, _LONGEST) for value in one.values)], one.notes)
        for one in found.sections[section]
    ]


# -- curves ----------------------------------------------------------------------------------------------------------
def _loss(found: SideBySide) -> Markup | None:
    """All losses over each other, with a mark where the first run parts from another; None without two curves."""
    from markupsafe import Markup

    points = [side.losses(by_tokens=found.by_tokens) for side in found.sides]
    if sum(len(one) > 1 for one in points) < 2:
        return None
    lines = [Line(raw, f"c{number}", faint=True) for number, raw in enumerate(points) if raw]
    lines += [Line(smooth(raw), f"c{number}", found.sides[number].name) for number, raw in enumerate(points) if raw]
    validated = [_validation(side, found.by_tokens) for side in found.sides]
    lines += [
        Line(one, f"c{number}", f"validation of {found.sides[number].name}", dots=True)
        for number, one in enumerate(validated)
        if one
    ]
    drawn = curve(lines, label="Loss of all runs", height=340.0, marks=list(_marks(found)), x_form=count)
    return Markup(redact(drawn))  # noqa: S704 run/svg.py escapes its texts


def _validation(side: Side, by_tokens: bool) -> list[Point]:
    measured = {int(row["step"]) for row in side.validation}
    rows: Iterable[JsonObject] = side.rows if by_tokens else ()
    tokens = {int(row["step"]): float(row["tokens_seen"]) for row in rows if int(row["step"]) in measured}
    places = [(tokens.get(row["step"]) if by_tokens else float(row["step"]), row["loss"]) for row in side.validation]
    return [(place, float(loss)) for place, loss in places if place is not None]


def _marks(found: SideBySide) -> list[Mark]:
    return [
        Mark(one.loss.at_first, f"{letter(0)} and {letter(number)} part here", "muted")
        for number, one in enumerate(found.curves, 1)
        if one is not None and one.loss is not None and one.aligned_by == "step"
    ]
