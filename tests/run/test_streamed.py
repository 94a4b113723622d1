"""Rows are streamed: as many memory for a long run as for a short one, and the same rows as if all were held."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.run.append import Appender, complete_lines
from launchyard.run.rows import Surviving, in_order
from launchyard.run.rundir import RunDir
from launchyard.run.svg import Course, thin
from launchyard.run.tail import RowTail
from launchyard.storage import damage, files


def row(step: int, *, at: float = 0.0, attempt: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "attempt": attempt, "time": at or float(step), **more}


def write_attempt(run: RunDir, number: int, events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    run.write_json(f"attempts/{number:04d}/job.json", {})
    for stem, lines in ((f"attempts/{number:04d}/events", events), (f"metrics/steps-{number:04d}", rows)):
        appender = Appender(run, stem)
        for line in lines:
            appender.add(line)
        appender.flush()


ATTEMPTS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 12), st.one_of(st.none(), st.integers(0, 20))), min_size=1, max_size=5
)


@settings(max_examples=25)
@given(ATTEMPTS)
def test_the_rows_that_count_are_those_of_the_newest_attempt_that_made_each(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int, int | None]]
) -> None:
    """Against all rows in one table. Each attempt: from which step, how many, and where it went back to once."""
    run = RunDir(str(tmp_path_factory.mktemp("run")))
    table: dict[int, tuple[int, float]] = {}
    reached = 0
    now = 1.0
    for number, (start, count, back) in enumerate(attempts):
        start = min(start, reached)
        rows = [row(start + n, at=now + n, attempt=number) for n in range(1, count + 1)]
        events = [{"event": "started", "step": start, "time": now}]
        table = {step: made for step, made in table.items() if step <= start}
        table |= {one["step"]: (number, one["time"]) for one in rows}
        now += count + 1
        if back is not None and start <= back < start + count:
            events.append({"event": "rewound", "step": back, "time": now})
            table = {step: made for step, made in table.items() if step <= back}
            rows += (again := [row(back + n, at=now + n, attempt=number) for n in range(1, 4)])
            table |= {one["step"]: (number, one["time"]) for one in again}
            now += 5
        write_attempt(run, number, events, rows)
        reached = max(table, default=0)
    found = list(run.rows("steps"))
    assert [(one["step"], (one["attempt"], one["time"])) for one in found] == sorted(table.items())


def test_lines_that_a_store_took_twice_count_once() -> None:
    once = [row(1), row(2, set="b"), row(2, set="a"), row(2), row(3)]
    found = list(in_order([*once, *once[1:], row(4)]))
    assert [(one["step"], one.get("set")) for one in found] == [
        (1, None), (2, None), (2, "a"), (2, "b"), (3, None), (4, None)
    ]  # fmt: skip


def test_what_survives_of_an_attempt() -> None:
    some = Surviving(last=7, back=[(5.0, 3)])
    assert [step for step in range(1, 10) if some.has(row(step))] == [1, 2, 3, 6, 7]


def test_a_long_log_needs_no_memory(tmp_path: Path) -> None:
    """The first rows come before the rest is read; all of them hold a block."""
    run = RunDir(str(tmp_path))
    lines = "".join(
        f'{{"step": {n}, "loss": 1.0, "attempt": 0, "time": {n}.0, "x": "{n:0200d}"}}\n' for n in range(40000)
    )
    run.write_text("metrics/steps-0000.jsonl", lines)
    run.write_json("attempts/0000/job.json", {})
    del lines
    tracemalloc.start()
    try:
        assert next(run.attempt_rows("steps", 0))["step"] == 0
        assert sum(1 for _ in run.rows("steps")) == 40000
        assert sum(1 for _ in RowTail(run, "metrics", "steps-0000").rows()) == 40000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e6, f"{peak / 1e6:.0f} MB for a file of 10 MB whose blocks have one"


def test_what_a_dead_process_had_not_written_is_looked_for_at_the_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(str(tmp_path))
    lines = [f'{{"step": {step}, "loss": 1.0, "attempt": 0, "time": {step}.0}}\n' for step in range(1, 40003)]
    run.write_text("metrics/steps-0000.jsonl", "".join(lines[:40001]))
    read: list[bytes] = []
    plain = files.read
    monkeypatch.setattr(files, "read", lambda *given: read.append(found := plain(*given)) or found)
    complete_lines(run, "metrics/steps-0000", lines[-2:])
    assert 0 < sum(map(len, read)) < 400_000, "of 2 MB"
    monkeypatch.undo()
    assert [one["step"] for one in run.attempt_rows("steps", 0)][-3:] == [40000, 40001, 40002]


@given(st.integers(1, 300), st.integers(1, 3))
def test_a_course_is_exact_while_it_is_short_and_means_of_equal_runs_after(count: int, power: int) -> None:
    course = Course(most := 8 * power)
    points = [(float(n), float(n * n % 17)) for n in range(count)]
    for x, y in points:
        course.add(x, y)
    found = course.points
    if count < 2 * most:
        assert found == points
    assert len(found) <= 2 * most and found[-1][0] == points[-1][0]
    each = next(each for each in (1 << n for n in range(20)) if -(-count // each) <= len(found))
    means = [sum(y for _, y in points[i : i + each]) / each for i in range(0, count - each + 1, each)]
    assert [y for _, y in found[: len(means)]] == pytest.approx(means)
    assert len(thin(found)) <= len(found)


def test_a_course_goes_back() -> None:
    course = Course()
    for step in range(10):
        course.add(step, step)
    course.back_to(4)
    course.add(5, 50)
    assert course.points[-2:] == [(4, 4), (5, 50)]


def test_a_line_is_read_as_json_reads_it() -> None:
    nan = damage.parse_line(b'{"loss": NaN, "x": Infinity, "text": "\\ud800", "big": 123456789012345678901234567890}')
    assert nan is not None and nan["loss"] != nan["loss"] and nan["text"] == "\ud800" and nan["big"] > 1e29
    assert damage.parse_line(b"[1]") is damage.parse_line(b'{"a": 1') is None
    assert damage.parse_line(b"") is None
