"""Ramps: values that grow with the steps of a run, as [[from_step, value], …]. Pure functions of the step."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

Ramp = tuple[tuple[int, int], ...]


def check_ramp(ramp: Ramp, key: str, last: int, last_key: str) -> None:
    """ValueError for one that does not begin at step 0, grow, and end with the value of its key."""
    steps = [step for step, _ in ramp]
    values = [value for _, value in ramp]
    if not ramp:
        return
    if steps[0] != 0 or steps != sorted(set(steps)):
        raise ValueError(f"{key}: begins at the steps {steps}; they must grow from 0 on")
    if values[0] < 1 or values != sorted(set(values)):
        raise ValueError(f"{key}: its values are {values}; they must grow, from 1 at least")
    if values[-1] != last:
        raise ValueError(f"{key}: ends with {values[-1]}, but {last_key} is {last}; the last value is that one")


def ramped(ramp: Ramp, step: int, last: int) -> int:
    """The value in the step that follows `step` finished ones."""
    return ramp[bisect_right(ramp, step, key=lambda stage: stage[0]) - 1][1] if ramp else last


def ramped_sum(ramp: Ramp, step: int, last: int) -> int:
    """The sum of the values of all steps before `step`."""
    if not ramp:
        return step * last
    ends = [*(start for start, _ in ramp[1:]), max(step, ramp[-1][0])]
    pairs = zip(ramp, ends, strict=True)
    return sum(value * max(0, min(step, end) - start) for (start, value), end in pairs)


def steps_to_sum(ramp: Ramp, total: int, last: int) -> int:
    """The fewest steps whose values add up to `total`."""
    for start, end in pairwise(ramp):
        if ramped_sum(ramp, end[0], last) >= total:
            return start[0] + -(-(total - ramped_sum(ramp, start[0], last)) // start[1])
    begin = ramp[-1][0] if ramp else 0
    return begin + -(-(total - ramped_sum(ramp, begin, last)) // last)
