"""Rows of two runs, step by step: until where they are equal to the bit, and how far apart they are from there on.

Where steps hold other numbers of tokens, losses are compared at equal tokens instead. Knows rows alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from launchyard.storage.damage import JsonObject

AnyRow = Mapping[str, object]
COMPARED = ("data_hash", "lr", "loss", "grad_norm")
APART = 0.01  # nats: two losses that far from each other are no matter of rounding
TAIL = 10  # a mean is taken over the last tenth


@dataclass(frozen=True)
class Gap:
    """The distance of one curve from another, second minus first, in nats. `at`: steps or tokens.

    `first`, `at_first`: where they part; `apart`: from where they differ by more than APART.
    """

    first: float
    at_first: float
    apart: float | None
    largest: float
    at_largest: float
    last: float
    at_last: float
    mean_last: float


@dataclass(frozen=True)
class Comparison:
    """One run against the first one. `first_different`: the first step that differs, None for figures that never do."""

    aligned_by: Literal["step", "tokens"]
    last_common_step: int
    first_different: dict[str, int | None]
    loss: Gap | None
    validation: Gap | None

    @property
    def equal_until(self) -> int:
        """The last step up to which every common loss has the same bits; 0 if the first differs."""
        first = self.first_different["loss"]
        return self.last_common_step if first is None else first - 1

    @property
    def differs(self) -> bool:
        parted = any(step is not None for step in self.first_different.values())
        return parted or self.aligned_by == "tokens" or self.validation is not None

    def to_json(self) -> JsonObject:
        return {**asdict(self), "equal_until": self.equal_until, "differs": self.differs}


def compare_rows(
    first: Sequence[AnyRow],
    second: Sequence[AnyRow],
    *,
    validations: tuple[Sequence[AnyRow], Sequence[AnyRow]] = ((), ()),
) -> Comparison:
    """The surviving rows of two runs, oldest first; steps that only one has are left out."""
    pairs = list(_common(first, second))
    by_tokens = any(a.get("tokens_seen") != b.get("tokens_seen") for a, b in pairs)
    return Comparison(
        aligned_by="tokens" if by_tokens else "step",
        last_common_step=int(_number(pairs[-1][0]["step"])) if pairs else 0,
        first_different={name: _first(pairs, name) for name in COMPARED},
        loss=_gap(list(_at_tokens(first, second) if by_tokens else _points(pairs))),
        validation=_gap(list(_points(list(_common(*validations))))),
    )


def _common(first: Sequence[AnyRow], second: Sequence[AnyRow]) -> Iterator[tuple[AnyRow, AnyRow]]:
    there = {row["step"]: row for row in second}
    return ((row, there[row["step"]]) for row in first if row["step"] in there)


def _first(pairs: Sequence[tuple[AnyRow, AnyRow]], name: str) -> int | None:
    """The first step at which a figure has other bits; a row that lacks it says nothing."""
    for a, b in pairs:
        if name in a and name in b and not _alike(a[name], b[name]):
            return int(_number(a["step"]))
    return None


def _alike(a: object, b: object) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _points(pairs: Sequence[tuple[AnyRow, AnyRow]]) -> Iterator[tuple[float, float, float]]:
    """(step, loss, other loss)."""
    return ((_number(a["step"]), _number(a["loss"]), _number(b["loss"])) for a, b in pairs)


def _at_tokens(first: Sequence[AnyRow], second: Sequence[AnyRow]) -> Iterator[tuple[float, float, float]]:
    """(tokens, loss, other loss) wherever the first has a step, the other loss on a straight line between two steps."""
    places = [_number(row["tokens_seen"]) for row in second]
    for row in first:
        tokens = _number(row["tokens_seen"])
        after = bisect_right(places, tokens)
        if after and places[after - 1] == tokens:
            yield tokens, _number(row["loss"]), _number(second[after - 1]["loss"])
        elif 0 < after < len(places):
            share = (tokens - places[after - 1]) / (places[after] - places[after - 1])
            low, high = (_number(second[at]["loss"]) for at in (after - 1, after))
            yield tokens, _number(row["loss"]), low + share * (high - low)


def _gap(points: Sequence[tuple[float, float, float]]) -> Gap | None:
    """None if they never differ, or nothing is common."""
    points = [point for point in points if math.isfinite(point[1]) and math.isfinite(point[2])]
    gaps = [(x, b - a) for x, a, b in points]
    parted = next(((x, gap) for x, gap in gaps if gap), None)
    if parted is None:
        return None
    largest = max(gaps, key=lambda one: abs(one[1]))
    tail = [gap for _, gap in gaps[-max(1, len(gaps) // TAIL) :]]
    return Gap(
        first=parted[1],
        at_first=parted[0],
        apart=next((x for x, gap in gaps if abs(gap) > APART), None),
        largest=largest[1],
        at_largest=largest[0],
        last=gaps[-1][1],
        at_last=gaps[-1][0],
        mean_last=math.fsum(tail) / len(tail),
    )
