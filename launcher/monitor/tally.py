"""Counts the ended attempts of runs by how they ended. What was counted once stays so: these numbers never fall.

An attempt without an outcome counts as lost once another has followed it; before, its owner may come back.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import zip_longest

from launchyard.launcher.agent.restart_policy import AGAIN_REASONS
from launchyard.run import layout
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir

RESULTS = ("completed", "stopped", "preempted", "failed", "nonfinite", "hung", "lost")
_FAILURES = {"non-finite": "nonfinite", "hung": "hung"}  # reasons of a failed attempt that have a result of their own


class Tally:
    """Of all runs of a monitor; each outcome is read until it is there, and never again."""

    def __init__(self) -> None:
        self._final: dict[str, dict[int, str]] = {}

    def count(self, run: RunDir, attempts: list[int]) -> dict[str, int]:
        """`attempts`: all of the run, oldest first."""
        final = self._final.setdefault(run.url, {})
        for attempt, following in zip_longest(attempts, attempts[1:]):
            if attempt not in final and (result := _result(run, attempt, following)) is not None:
                final[attempt] = result
        return dict(Counter(final.values()))

    def forget(self, run_url: str) -> None:
        self._final.pop(run_url, None)


def _result(run: RunDir, attempt: int, following: int | None) -> str | None:
    """One of RESULTS; None while it is not known for good."""
    record = run.outcome(attempt)
    if record is None or (following is not None and _came_late(run, record, following)):
        return None if following is None else "lost"
    preempted = record.outcome == "stopped" and record.reason in AGAIN_REASONS
    return "preempted" if preempted else _FAILURES.get(record.reason, record.outcome)


def _came_late(run: RunDir, record: OutcomeRecord, following: int) -> bool:
    """Was it written after the next attempt was claimed, by an owner that was taken for dead? It was lost by then.

    By the clock of where the run lies; that is asked only where the clocks of the owners do not rule it out.
    """
    if record.time <= run.job(following).created:
        return False
    with contextlib.suppress(FileNotFoundError):
        written, claimed = (run.age(name) for name in (layout.outcome(record.attempt), layout.job(following)))
        return written < claimed
    return False
