"""The state of a run by its two witnesses, cell by cell: for SLURM, which is trusted, and Ray.

alive: its owner lives or will be started. free: another job may take the run. lease: only the heartbeat says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from launchyard.launcher.agent.liveness import Answer, Beat, Verdict, judge
from launchyard.launcher.backends.base import load_backend

SLURM = """
           | none yet            | fresh                | stale               | outcome
queued     | pending alive       | pending alive        | pending alive       | ended alive
running    | starting alive      | running alive        | unknown alive       | ended alive
suspended  | suspended alive     | suspended alive      | suspended alive     | ended alive
ending     | running alive       | running alive        | running alive       | ended alive
gone       | lost free           | lost free            | lost free           | ended free
forgotten  | lost free           | running alive lease  | lost free           | ended free
unknown    | unknown             | running alive lease  | unknown free lease  | ended free
none       | lost free lease     | running alive lease  | lost free lease     | ended free
"""
RAY = """
           | none yet            | fresh                | stale               | outcome
queued     | pending alive       | pending alive        | lost free lease     | ended free
running    | starting alive      | running alive        | lost free lease     | ended free
suspended  | suspended alive     | suspended alive      | suspended alive     | ended alive
ending     | running alive       | running alive        | running alive       | ended alive
gone       | lost free           | lost free            | lost free           | ended free
forgotten  | lost free           | running alive lease  | lost free           | ended free
unknown    | unknown free        | running alive lease  | unknown free lease  | ended free
none       | lost free lease     | running alive lease  | lost free lease     | ended free
"""


def cells(matrix: str) -> dict[tuple[Answer, Beat], str]:
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in matrix.strip().splitlines()]
    found = {(row[0], beat): cell for row in rows for beat, cell in zip(head[1:], row[1:], strict=True)}
    assert set(found) == {(answer, beat) for answer in get_args(Answer) for beat in get_args(Beat)}, (
        "no cell is missing"
    )
    return found  # type: ignore[return-value]


def shown(verdict: Verdict) -> str:
    marks = {"alive": verdict.alive, "free": verdict.free, "lease": verdict.by_lease}
    return " ".join([verdict.state, *(mark for mark, holds in marks.items() if holds)])


CASES = [(name, *key, cell) for name, matrix in (("slurm", SLURM), ("ray", RAY)) for key, cell in cells(matrix).items()]


@pytest.mark.parametrize(("scheduler", "answer", "beat", "expected"), CASES)
def test_each_cell(scheduler: str, answer: Answer, beat: Beat, expected: str) -> None:
    trusted = load_backend(scheduler).TRAITS.trusted
    verdict = judge(answer, beat, trusted=trusted)
    assert shown(verdict) == expected
    assert not (verdict.alive and verdict.free), "nobody takes the run of an owner that lives"
    told = replace(verdict, reason=verdict.reason.format(title="SLURM", said="RUNNING", age="3m", job="7")).reason
    assert "{" not in told
    surprising = (answer in ("running", "queued") and beat == "stale" and verdict.state in ("lost", "unknown")) or (
        answer == "forgotten" and verdict.alive
    )
    assert not surprising or verdict.reason, "where the witnesses disagree, it is said"
