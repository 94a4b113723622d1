"""Several runs, or runs and recipes, compared: every difference by its section, curves, diffs of code, and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from launchyard.launcher.format import count, duration
from launchyard.launcher.report.diff.code import CodeDiff, code_diff, own_diff
from launchyard.launcher.report.diff.curves import Comparison, compare_rows
from launchyard.launcher.report.diff.facts import (
    Difference,
    code_facts,
    data_differences,
    differing,
    environment_facts,
    recipe_differences,
    worker_facts,
)
from launchyard.launcher.report.diff.sides import Side
from launchyard.storage.damage import JsonObject

MAX_SIDES = 6  # as many as there are colours


@dataclass(frozen=True)
class Figure:
    """One figure of each side; None where it has none. `form`: how people read it."""

    what: str
    values: tuple[float | None, ...]
    form: Callable[[float], str]

    @property
    def texts(self) -> list[str]:
        return ["–" if value is None else self.form(value) for value in self.values]


@dataclass(frozen=True)
class SideBySide:
    """`sections`: their names and differences; `curves` and `code_diffs`: each side after the first against the first.

    A side that is a recipe has no curves.
    """

    sides: tuple[Side, ...]
    sections: dict[str, list[Difference]]
    code_diffs: tuple[CodeDiff, ...]
    curves: tuple[Comparison | None, ...]
    results: tuple[Figure, ...]

    @property
    def differs(self) -> bool:
        """Does anything but speed and time?"""
        return any(self.sections.values()) or any(one is not None and one.differs for one in self.curves)

    @property
    def by_tokens(self) -> bool:
        """Are curves drawn over tokens, as steps hold other numbers of them?"""
        return any(one is not None and one.aligned_by == "tokens" for one in self.curves)

    def to_json(self) -> JsonObject:
        return {
            "differs": self.differs,
            "sides": [_side_json(side) for side in self.sides],
            **{name: [one.to_json() for one in found] for name, found in self.sections.items()},
            "code_diffs": [asdict(one) for one in self.code_diffs],
            "curves": [None if one is None else one.to_json() for one in self.curves],
            "results": {one.what: list(one.values) for one in self.results},
        }


def _side_json(side: Side) -> JsonObject:
    state = side.story.state if side.story is not None else None
    return {
        "name": side.name,
        "kind": "recipe" if state is None else "run",
        "place": side.place,
        "state": state and state.state,
        "step": state and state.step,
        "max_steps": state and state.max_steps,
    }


def compare_sides(sides: Sequence[Side]) -> SideBySide:
    """Everything that differs between two sides or more."""
    first, *others = sides
    return SideBySide(
        sides=tuple(sides),
        sections={
            "recipe": recipe_differences(sides),
            "code": differing([code_facts(side) for side in sides]),
            "data": data_differences(sides),
            "workers": differing([worker_facts(side) for side in sides]),
            "environment": differing(environment_facts(sides)),
        },
        code_diffs=tuple(code_diff(first.code, other.code).after(own_diff(first.own, other.own)) for other in others),
        curves=tuple(_curves(first, other) for other in others),
        results=tuple(_results(sides)),
    )


def _curves(first: Side, other: Side) -> Comparison | None:
    if any(side.story is None or not side.story.steps.count for side in (first, other)):
        return None
    return compare_rows(first.rows, other.rows, validations=(first.validation, other.validation))


# -- results ---------------------------------------------------------------------------------------------------------
def _results(sides: Sequence[Side]) -> list[Figure]:
    """Figures of which some side has one."""
    found = [Figure(what, tuple(take(side) for side in sides), form) for what, take, form in _FIGURES]
    return [one for one in found if any(value is not None for value in one.values)]


def _last(key: str) -> Callable[[Side], float | None]:
    return lambda side: _value(side.story.steps.last.get(key)) if side.story is not None else None


def _median(key: str) -> Callable[[Side], float | None]:
    return lambda side: side.story.steps.median(key) if side.story is not None else None


def _value(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _validated(choose: Callable[[list[float]], float]) -> Callable[[Side], float | None]:
    def take(side: Side) -> float | None:
        losses = [value for row in side.validation if (value := _value(row.get("loss"))) is not None]
        return choose(losses) if losses else None

    return take


def _goodput(side: Side) -> float | None:
    goodput = side.story.goodput if side.story is not None else None
    return None if goodput is None else goodput.ratio


def _wall(side: Side) -> float | None:
    goodput = side.story.goodput if side.story is not None else None
    return None if goodput is None else goodput.wall


def _attempts(side: Side) -> float | None:
    return None if side.story is None else float(len(side.story.attempts))


def _four(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_FIGURES: tuple[tuple[str, Callable[[Side], float | None], Callable[[float], str]], ...] = (
    ("steps", _last("step"), _whole),
    ("tokens", _last("tokens_seen"), count),
    ("loss", _last("loss"), _four),
    ("validation loss", _validated(lambda losses: losses[-1]), _four),
    ("best validation loss", _validated(min), _four),
    ("tokens/s, median", _median("tokens_per_second"), count),
    ("MFU, median", _median("mfu"), _percent),
    ("goodput", _goodput, _percent),
    ("wall time", _wall, duration),
    ("attempts", _attempts, _whole),
)
