"""Rows of a run as tables for people. Knows no run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TypeVar

from launchyard.launcher.format import table
from launchyard.launcher.report.terminal_chart import loss_chart
from launchyard.run.rows import values_of
from launchyard.run.svg import Course
from launchyard.storage.damage import JsonObject
from launchyard.training.sections.validation import MAIN

Item = TypeVar("Item")
MOST_HELD = 1 << 10  # rows, of which a dozen are chosen


def step_table(rows: Iterable[JsonObject]) -> list[str]:
    """A dozen steps, and the curve of all; nothing without a row. No more than some dozens are held."""
    keys = ["step", "loss", "grad_norm", "lr", "tokens_seen", "tokens_per_second", "attempt"]
    held: list[JsonObject] = []
    each = 1
    losses = Course()
    row: JsonObject = {}
    for number, row in enumerate(rows):
        losses.add(float(row["step"]), float(row["loss"]))
        if number % each == 0:
            held.append(row)
            if len(held) == MOST_HELD:
                held = held[::2]
                each *= 2
    if not row:
        return []
    chosen = _dozen(held if held[-1] is row else [*held, row])
    return [*_table_of(chosen, keys), "", *loss_chart(losses.points, of=loss_of(row))]


def loss_of(row: JsonObject) -> str:
    """What a loss in a row is a mean of."""
    return "pair" if "reward_margin" in row else "token"


def rows_as_json(rows: Iterable[JsonObject], *, one_a_line: bool) -> Iterator[str]:
    """The text of all rows as they come: a line for each, or one list."""
    before = "["
    for row in rows:
        yield f"{json.dumps(row)}\n" if one_a_line else f"{before}{json.dumps(row)}"
        before = ", "
    if not one_a_line:
        yield "[]\n" if before == "[" else "]\n"


def validation_table(rows: list[JsonObject]) -> list[str]:
    """A dozen validations, a line for each set of held-out data."""
    steps = _dozen(list(dict.fromkeys(row["step"] for row in rows)))
    of_sets = ["set"] if any(row.get("set") for row in rows) else []
    figures = [key for key in ("perplexity", "bits_per_byte") if any(key in row for row in rows)]
    chosen = [{**row, "set": row.get("set") or MAIN} for row in rows if row["step"] in steps]
    return [*_table_of(chosen, ["step", *of_sets, "loss", *figures, "attempt"]), ""]


def score_table(rows: list[JsonObject]) -> Iterator[str]:
    """A line for each checkpoint that was asked tasks, a column for each figure."""
    points = [(row["step"], values_of(row["scores"])) for row in rows]
    names = list(dict.fromkeys(name for _, values in points for name in values))
    cells = [
        [str(step), *(f"{values[name]:.4g}" if name in values else "-" for name in names)] for step, values in points
    ]
    yield from table(cells, ["step", *names])


def _dozen(some: list[Item]) -> list[Item]:
    """About so many, evenly, the last among them."""
    chosen = some[:: max(1, len(some) // 12)]
    return chosen if chosen[-1] is some[-1] else [*chosen, some[-1]]


def _table_of(rows: list[JsonObject], keys: list[str]) -> list[str]:
    cells = [[row.get(key, "-") for key in keys] for row in rows]
    return table([[f"{one:.4g}" if isinstance(one, float) else str(one) for one in row] for row in cells], keys)
