"""The gradient norms by part that rows have, for a page: curves of the largest, and a table of all. Knows no run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from launchyard.launcher.format import count
from launchyard.run.svg import Line, Mark, curve
from launchyard.storage.damage import JsonObject

DRAWN = 6  # as many as there are colours
KINDS = (("grad_norms", "part"), ("group_grad_norms", "group"))
HEAD = ("part", "first", "median", "largest", "at step", "last")

Series = list[tuple[float, float]]


def page_gradients(rows: Sequence[JsonObject], marks: Sequence[Mark]) -> JsonObject | None:
    """None of a run that has none."""
    series = dict(_series(rows))
    if not series:
        return None
    by_size = sorted(series, key=lambda name: -statistics.median(value for _, value in series[name]))
    chosen = [name for name in series if name in by_size[:DRAWN]]
    colours = [f"c{number}" for number in range(len(chosen))]
    lines = [Line(series[name], colour, name) for name, colour in zip(chosen, colours, strict=True)]
    form = "{:.3g}".format
    drawn = curve(lines, label="Gradient norm by part", height=220.0, marks=marks, form=form, x_form=count)
    more = f"; drawn are the {DRAWN} largest" if len(series) > DRAWN else ""
    return {
        "said": f"Before clipping, in {max(map(len, series.values())):,} steps that measured them{more}.",
        "legend": list(zip(colours, chosen, strict=True)),
        "drawn": drawn,
        "head": HEAD,
        "rows": [_row(name, points) for name, points in series.items()],
    }


def _series(rows: Sequence[JsonObject]) -> Iterator[tuple[str, Series]]:
    """The points of each part of the model, then of each group of the optimizer, by its name."""
    for key, kind in KINDS:
        measured = [row for row in rows if row.get(key)]
        for name in dict.fromkeys(name for row in measured for name in row[key]):
            points = [(float(row["step"]), float(row[key][name])) for row in measured if name in row[key]]
            yield (name if kind == "part" else f"{kind} {name}"), points


def _row(name: str, points: Series) -> list[str]:
    values = [value for _, value in points]
    at, largest = max(points, key=lambda point: point[1])
    figures = (values[0], statistics.median(values), largest)
    return [name, *(f"{value:.3g}" for value in figures), f"{at:,.0f}", f"{values[-1]:.3g}"]
