"""From what is typed to the points of a sweep: a grid, random draws, or the rows of a file. Pure but for that file.

A point is a mapping of dotted keys to values. Knows no plan and no run; a value is checked when its point is planned.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launchyard.errors import RecipeErrors, UserError, user_errors
from launchyard.launcher.recipe.load import key_of, parse_overrides, paths_from
from launchyard.launcher.recipe.yaml import parse_value, read_list
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import typed_path

MOST_POINTS = 1000
_TRIES = 100  # draws for each point before a space is taken to be used up
_DIGITS = 4  # of a drawn number, so that a person can type it again
_RANGE = re.compile(r"(log|uniform|int):(.+)\.\.(.+)")
HOW_VALUES = "several values of a key are a list, such as optimizer.lr=[1e-4,3e-4]"
HOW_RANGES = "a range is log:1e-5..1e-3, uniform:0..0.2 or int:1..8"


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included, evenly or (log) evenly in their exponents."""

    kind: str
    low: float
    high: float

    def draw(self, share: float) -> float:
        """Returns the number at a share of the range, 0 up to 1."""
        if self.kind == "int":
            return int(self.low) + min(int(share * (self.high - self.low + 1)), int(self.high - self.low))
        if self.kind == "log":
            found = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + share * (self.high - self.low)
        return min(max(float(f"{found:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Axes:
    """KEY=VALUE as typed, in order: keys with one value, and keys with several or a range."""

    fixed: JsonObject
    varied: Mapping[str, list[object] | Range]


def parse_axes(pairs: Sequence[str]) -> Axes:
    """Sorts KEY=VALUE into fixed and varied keys; RecipeErrors with all that is wrong with them."""
    fixed: JsonObject = {}
    varied: dict[str, list[object] | Range] = {}
    problems: list[str] = []
    for pair in pairs:
        try:
            ((typed, value),) = parse_overrides([pair]).items()
            key = full_key(typed)
            if key in fixed or key in varied:
                raise UserError(f"{key} on the command line: given twice; all its values belong into one list")
            found = _values(key, pair.partition("=")[2], value)
        except RecipeErrors as error:
            problems += error.problems
        except UserError as error:
            problems.append(str(error))
        else:
            if found is None:
                fixed[key] = value
            else:
                varied[key] = found
    if problems:
        raise RecipeErrors(problems, hint=f"{HOW_VALUES}; {HOW_RANGES}")
    return Axes(fixed, varied)


@cache
def full_key(word: str) -> str:
    """The dotted key of a word that is one, or its last part where that is clear. UserError for another name of it."""
    meant = key_of(word)
    if meant is None or meant == word or meant.rsplit(".", 1)[-1] == word:
        return meant or word
    raise UserError(f"{word} on the command line: unknown key; did you mean {meant}?")


def _values(key: str, text: str, value: object) -> list[object] | Range | None:
    """The values of a varied key; None for one value."""
    if found := _RANGE.fullmatch(text):
        return _range(key, text, *found.groups())
    if not isinstance(value, list):
        return None
    if not value:
        raise UserError(f"{key}=[] on the command line: no value to try; {HOW_VALUES}")
    return value


def _range(key: str, text: str, kind: str, low: str, high: str) -> Range:
    bounds = [parse_value(bound) for bound in (low, high)]
    where = f"{key}={text} on the command line"
    numbers = [bound for bound in bounds if isinstance(bound, int | float) and not isinstance(bound, bool)]
    if len(numbers) < 2:
        raise UserError(f"{where}: a range lies between two numbers; {HOW_RANGES}")
    if numbers[0] >= numbers[1]:
        raise UserError(f"{where}: the smaller number comes first, and they differ")
    if kind == "log" and numbers[0] <= 0:
        raise UserError(f"{where}: log needs numbers above 0")
    if kind == "int" and not all(isinstance(number, int) for number in numbers):
        raise UserError(f"{where}: int needs whole numbers")
    return Range(kind, *numbers)


# -- three designs -----------------------------------------------------------------------------------------------------
def grid(varied: Mapping[str, list[object] | Range]) -> list[JsonObject]:
    """Returns all combinations, in the order of loops inside each other: the last key changes fastest."""
    ranges = [key for key, values in varied.items() if isinstance(values, Range)]
    if ranges:
        raise UserError(
            f"{', '.join(ranges)}: a range is drawn from; say how often with --random N, or list its values"
        )
    lists = [values for values in varied.values() if isinstance(values, list)]
    n = math.prod(map(len, lists))
    if n > MOST_POINTS:
        sizes = " x ".join(str(len(values)) for values in lists)
        raise UserError(f"{sizes} = {n:,} points; a sweep has at most {MOST_POINTS}: draw some with --random N")
    return [dict(zip(varied, values, strict=True)) for values in itertools.product(*lists)]


def draw_points(varied: Mapping[str, list[object] | Range], n: int, seed: int) -> list[JsonObject]:
    """Returns n different points. Those of a smaller n come first, and the values of a key depend on no other key."""
    if n > MOST_POINTS:
        raise UserError(f"--random {n}: a sweep has at most {MOST_POINTS} points")
    found: dict[str, JsonObject] = {}
    for draw in range(n * _TRIES):
        point = {key: _draw(values, f"{seed}/{draw}/{key}") for key, values in varied.items()}
        found.setdefault(json.dumps(point), point)
        if len(found) == n:
            return list(found.values())
    raise UserError(f"--random {n}: there are only {len(found)} different points; use at most {len(found)}")


def _draw(values: list[object] | Range, seed: str) -> object:
    share = random.Random(seed).random()  # the same in every version of Python
    return values.draw(share) if isinstance(values, Range) else values[int(share * len(values))]


# -- rows of a file ----------------------------------------------------------------------------------------------------
def read_points(name: str) -> list[JsonObject]:
    """Returns the points of a file, one a row: .yaml (a list of mappings), .csv (keys in its head) or .jsonl.

    An empty cell of CSV leaves the recipe's own value. RecipeErrors with the place of all that is wrong.
    """
    with user_errors("--file"):
        path = Path(typed_path(name))
        readers = {".yaml": _yaml_rows, ".yml": _yaml_rows, ".csv": _csv_rows, ".jsonl": _jsonl_rows}
        if path.suffix not in readers:
            raise ValueError(f"{name}: must end in {', '.join(readers)}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(f"{name}: {(error.strerror or str(error)).lower()}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: not UTF-8 text (byte {error.start})") from error
    rows = list(readers[path.suffix](text, name))
    if not rows:
        raise UserError(f"--file {name}: holds no rows")
    if len(rows) > MOST_POINTS:
        raise UserError(f"--file {name}: {len(rows):,} rows; a sweep has at most {MOST_POINTS} points")
    problems = []
    points = []
    for where, row in rows:
        try:
            points.append({full_key(key): value for key, value in _flat(row).items()})
        except UserError as error:
            problems.append(f"{where}: {str(error).replace(' on the command line', '')}")
    if problems:
        raise RecipeErrors(problems)
    return [paths_from(str(path.resolve().parent), point) for point in points]


def _flat(row: JsonObject, before: str = "") -> JsonObject:
    """Sections inside a row as dotted keys."""
    found: JsonObject = {}
    for key, value in row.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return found


_Rows = Iterator[tuple[str, JsonObject]]


def _yaml_rows(text: str, name: str) -> _Rows:
    for number, row in enumerate(read_list(text, name), 1):
        if not isinstance(row, dict):
            raise UserError(f"--file {name}, row {number}: must be a mapping, such as `- optimizer.lr: 3e-4`")
        yield f"{name}, row {number}", row


def _csv_rows(text: str, name: str) -> _Rows:
    for row in (reader := csv.DictReader(io.StringIO(text), skipinitialspace=True)):
        where = f"{name}:{reader.line_num}"
        if None in row or None in row.values():
            raise UserError(f"--file {where}: has another number of cells than the head of the file")
        yield where, {key.strip(): parse_value(cell) for key, cell in row.items() if cell.strip()}


def _jsonl_rows(text: str, name: str) -> _Rows:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"--file {name}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"--file {name}:{number}: must be an object of keys and values")
        yield f"{name}:{number}", row
