"""The pace of a run from its rows: saves and validations belong to it, and one slow step is not all of it."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.run.rows import PACE_ROWS, SPEED_ROWS, pace_of


def rows_of(*seconds: float) -> list[dict[str, Any]]:
    """One row a step, each so many seconds after the one before; a step itself takes 1 s and 10 tokens."""
    made, now = [], 0.0
    for step, took in enumerate(seconds, start=1):
        now += took
        row = {"step": step, "loss": 1.0, "attempt": 0, "time": now, "tokens_seen": 10 * step}
        made.append({**row, "tokens_per_second": 10.0, "step_seconds": 1.0})
    return made


def test_a_save_every_ten_steps_is_part_of_the_time_that_is_left() -> None:
    pace = pace_of(rows_of(*([1.0] * 9 + [11.0]) * 30))
    assert pace is not None
    assert pace.seconds_to(1300, step=300) == pytest.approx(2000, rel=0.02), "twice what the steps alone would take"
    assert pace.tokens_per_second == pytest.approx(5, rel=0.1)


def test_one_slow_step_hardly_changes_what_is_left() -> None:
    pace = pace_of(rows_of(*[1.0] * PACE_ROWS, 30.0))
    assert pace is not None and pace.step_seconds < 1.5
    quick = pace_of(rows_of(*[2.0] * (PACE_ROWS - SPEED_ROWS), *[1.0] * SPEED_ROWS))
    assert quick is not None and quick.tokens_per_second == pytest.approx(10), "speed is that of now"


def test_rows_that_do_not_tell() -> None:
    assert pace_of([]) is None
    assert pace_of([{"step": 1, "loss": 1.0, "attempt": 0, "time": 1.0}]) is None, "of an older version"
    alone = pace_of(rows_of(5.0))
    assert alone is not None and (alone.tokens_per_second, alone.step_seconds) == (10, 1)
    assert alone.seconds_to(1, step=1) == alone.seconds_to(1, step=3) == 0
