"""Rows of a run as tables for people. Knows no run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from launchyard.launcher.format import table
from launchyard.launcher.report.terminal_chart import loss_chart
from launchyard.run.rows import values_of
from launchyard.storage.damage import JsonObject
from launchyard.training.sections.validation import MAIN

Item = TypeVar("Item")


def step_table(rows: list[JsonObject]) -> list[str]:
    """A dozen steps, and the curve of all."""
    keys = ["step", "loss", "grad_norm", "lr", "tokens_seen", "tokens_per_second", "attempt"]
    return [*_table_of(_dozen(rows), keys), "", *loss_chart(rows)]


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
