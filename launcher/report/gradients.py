"""The gradient norms by part of a run, for a page: curves of the largest, and a table of all. Knows no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launchyard.launcher.format import count
from launchyard.launcher.report.steps import Norms
from launchyard.run.svg import Line, Mark, curve
from launchyard.storage.damage import JsonObject

MOST_DRAWN = 6  # as many as there are colours
HEAD = ("part", "first", "median", "largest", "at step", "last")


def page_gradients(norms: Mapping[str, Norms], marks: Sequence[Mark]) -> JsonObject | None:
    """None of a run that has none."""
    if not norms:
        return None
    by_size = sorted(norms, key=lambda name: -norms[name].median)
    chosen = [name for name in norms if name in by_size[:MOST_DRAWN]]
    colours = [f"c{number}" for number in range(len(chosen))]
    lines = [Line(norms[name].points, colour, name) for name, colour in zip(chosen, colours, strict=True)]
    form = "{:.3g}".format
    label = "Gradient norm by part"
    drawn = [
        curve(lines, label=label, width=width, height=height, marks=marks, form=form, x_form=count)
        for width, height in ((1040.0, 220.0), (380.0, 200.0))
    ]
    more = f"; drawn are the {MOST_DRAWN} largest" if len(norms) > MOST_DRAWN else ""
    return {
        "said": f"Before clipping, in {max(one.count for one in norms.values()):,} steps that measured them{more}.",
        "legend": list(zip(colours, chosen, strict=True)),
        "drawn": drawn,
        "head": HEAD,
        "rows": [_row(name, one) for name, one in norms.items()],
    }


def _row(name: str, norms: Norms) -> list[str]:
    figures = (norms.first, norms.median, norms.largest)
    return [name, *(f"{value:.3g}" for value in figures), f"{norms.largest_at:,.0f}", f"{norms.last:.3g}"]
