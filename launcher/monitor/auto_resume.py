"""`launch monitor --resume`: resumes runs whose job is gone without a word, such as those of a Ray whose head died.

Only runs of this account that it has seen alive, and that nobody has asked to stop. As often as the recipe allows
failures in a row (resources.max_failures), counted anew after each checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from launchyard.errors import LaunchError
from launchyard.launcher.agent.owner import max_failures
from launchyard.launcher.monitor.server import View
from launchyard.launcher.runs.registry import Registered, registered
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run.rundir import RunDir
from launchyard.training.sections.resources import ResourcesConfig

FIRST_WAIT_SECONDS = 10.0  # between two tries for a run; it doubles
LONGEST_WAIT_SECONDS = 300.0


@dataclass
class _Tries:
    """What was done for a run since its newest checkpoint."""

    checkpoint: int | None
    resumed: int = 0
    refused: int = 0
    next_at: float = 0.0
    reported: str = ""


class AutoResume:
    """Called after each scan. `resume` starts the next attempt of a run, and returns the id of its job.

    `report` gets a line for each resume, and one for each reason why there is none.
    """

    def __init__(self, resume: Callable[[RunDir], str], report: Callable[[str], None]) -> None:
        self._start = resume
        self._report = report
        self._alive: set[str] = set()
        self._tries: dict[str, _Tries] = {}

    def __call__(self, view: View) -> None:
        self._alive |= {seen.run_id for seen in view.runs if not seen.is_over}
        for entry in registered():
            if entry.run_id in self._alive and self._is_due(entry.run_id):
                self._look_after(entry)

    def _is_due(self, run_id: str) -> bool:
        tries = self._tries.get(run_id)
        return tries is None or time.monotonic() >= tries.next_at

    def _look_after(self, entry: Registered) -> None:
        run = entry.open()
        try:
            state = state_of(run)
            if state.state in ("completed", "stopped", "failed"):
                self._alive.discard(entry.run_id)
            if state.state != "lost" or run.stop_requested() is not None:
                return
            self._resume(run, state)
        except (LaunchError, OSError, ValueError) as error:
            self._refused(entry.run_id, str(error))

    def _resume(self, run: RunDir, state: RunState) -> None:
        tries = self._tries.setdefault(state.run_id, _Tries(state.checkpoint))
        if tries.checkpoint != state.checkpoint:
            tries = self._tries[state.run_id] = _Tries(state.checkpoint)
        if tries.resumed >= resumes_allowed(run):
            self._refused(state.run_id, f"lost {tries.resumed} times without a new checkpoint")
            return
        job_id = self._start(run)
        tries.resumed += 1
        tries.next_at = time.monotonic() + _pause(tries.resumed)
        step = state.checkpoint or 0
        self._report(f"✓ resumed  {state.run_id} from step {step}, as job {job_id}: {state.message or 'lost'}")

    def _refused(self, run_id: str, why: str) -> None:
        """Reports why a run is not resumed, once a reason, and lets it be for a while."""
        tries = self._tries.setdefault(run_id, _Tries(None))
        tries.refused += 1
        tries.next_at = time.monotonic() + _pause(tries.refused)
        if tries.reported != why:
            tries.reported = why
            self._report(f"✗ not resumed  {run_id}: {why}; by hand: launch resume {run_id}")


def resumes_allowed(run: RunDir) -> int:
    """Returns the number of resumes in a row without a new checkpoint."""
    attempts = run.attempts()
    return max_failures(run, run.job(attempts[-1])) if attempts else ResourcesConfig().max_failures


def _pause(count: int) -> float:
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (count - 1))
