"""What a page tells of the rows of steps, taken from one pass over them: curves, medians, sums, ends.

No row but the first and the last is kept: a run may be a million steps long. Knows no run.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Mapping, Sequence

from launchyard.run.svg import Course, Point
from launchyard.storage.damage import JsonObject

DRAWN = ("loss", "tokens_per_second", "grad_norm", "lr")
MEDIANS = ("tokens_per_second", "mfu")
NORMS = (("grad_norms", ""), ("group_grad_norms", "group "))


class Norms:
    """The gradient norms of one part: of many of them each second, fourth … is kept. Their largest is exact."""

    def __init__(self, most: int = 4096) -> None:
        self.count = 0
        self.first = math.nan
        self.last = math.nan
        self.largest = -math.inf
        self.largest_at = math.nan
        self._most = most
        self._each = 1
        self._xs = array("d")
        self._ys = array("d")

    def add(self, x: float, y: float) -> None:
        if not self.count:
            self.first = y
        self.last = y
        if y > self.largest:
            self.largest = y
            self.largest_at = x
        if self.count % self._each == 0:
            self._xs.append(x)
            self._ys.append(y)
        self.count += 1
        if len(self._xs) == 2 * self._most:
            self._xs = self._xs[::2]
            self._ys = self._ys[::2]
            self._each *= 2

    @property
    def median(self) -> float:
        return statistics.median(self._ys)

    @property
    def points(self) -> list[Point]:
        return list(zip(self._xs, self._ys, strict=True))


class Steps:
    """Of the rows that count, each added once, in order."""

    def __init__(self) -> None:
        self.count = 0
        self.first: JsonObject = {}
        self.last: JsonObject = {}
        self.curves = {key: Course() for key in DRAWN}
        self._values = {key: array("d") for key in MEDIANS}
        self._norms: dict[str, dict[str, Norms]] = {kind: {} for kind, _ in NORMS}

    def add(self, row: JsonObject) -> None:
        step = int(row["step"])
        if self.count and step <= int(self.last["step"]):
            return  # there twice, as run.rows.in_order tells
        if not self.count:
            self.first = row
        self.last = row
        self.count += 1
        for key, course in self.curves.items():
            if (value := row.get(key)) is not None:
                course.add(step, float(value))
        for key, values in self._values.items():
            if (value := row.get(key)) is not None:
                values.append(float(value))
        for kind, named in self._norms.items():
            for name, norm in (row.get(kind) or {}).items():
                named.setdefault(name, Norms()).add(step, float(norm))

    @property
    def norms(self) -> dict[str, Norms]:
        """By part of the model, then by group of the optimizer."""
        return {f"{before}{name}": one for kind, before in NORMS for name, one in self._norms[kind].items()}

    def median(self, key: str) -> float | None:
        return statistics.median(self._values[key]) if self._values[key] else None


class PhaseSeconds:
    """The seconds of each phase, of every row that was added."""

    def __init__(self) -> None:
        self.count = 0
        self._columns: dict[str, array[float]] = {}

    def add(self, phases: Mapping[str, float]) -> None:
        for phase, seconds in phases.items():
            column = self._columns.get(phase)
            if column is None:
                column = self._columns[phase] = array("d", bytes(8 * self.count))
            column.append(float(seconds))
        self.count += 1
        if len(phases) != len(self._columns):
            for column in self._columns.values():
                if len(column) < self.count:
                    column.append(0.0)

    def total(self, phase: str) -> float:
        return math.fsum(self._columns.get(phase, ()))

    def ordered(self, phase: str) -> Sequence[float]:
        """Of each row, the least first. To order them again costs little."""
        column = self._columns.get(phase)
        if column is None:
            return array("d", bytes(8 * self.count))
        self._columns[phase] = array("d", sorted(column))
        return self._columns[phase]


class AttemptSteps:
    """Of all rows of an attempt. reached: the highest step that attempts before it had done."""

    def __init__(self, reached: int = 0) -> None:
        self.count = 0
        self.highest = 0
        self.first: JsonObject = {}
        self.last: JsonObject = {}
        self.again: list[JsonObject] = []  # the first and the last row of steps that were done already
        self.fresh: list[JsonObject] = []  # and of those that were not
        self.phases = PhaseSeconds()
        self._reached = reached

    def add(self, row: JsonObject) -> None:
        step = int(row["step"])
        if not self.count:
            self.first = row
        self.last = row
        self.count += 1
        self.highest = max(self.highest, step)
        ends = self.again if step <= self._reached else self.fresh
        ends[1:] = [row]
        self.phases.add(row.get("phases") or {})


def read_steps(rows: Iterable[JsonObject]) -> Steps:
    found = Steps()
    for row in rows:
        found.add(row)
    return found
