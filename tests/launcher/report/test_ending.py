"""The last page of a run, from its run directory alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.format import progress_line
from launchyard.launcher.report.ending import last_page
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from tests.launcher.runs.test_find import claim, rows
from tests.support.standin import make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Killed after 30 steps, 90 s after it began; gone on from 20 to 25."""
    run = make_run(tmp_path)
    first = claim(run, 0, alive=False)
    rows(run, 0, range(1, 31), start=0)
    run.write_json("attempts/0000/heartbeat.json", {"time": first.created + 90})
    claim(run, 1, alive=False)
    rows(run, 1, range(21, 26), start=20)
    return run


def page(run: RunDir, outcome: Any, reason: str, **more: Any) -> list[str]:
    facts: dict[str, Any] = {"attempt": 1, "step": 25, "time": run.job(1).created + 30, "message": "why", **more}
    record = OutcomeRecord(outcome=outcome, reason=reason, **facts)
    run.write_outcome(record)
    return last_page(run, record, out=io.StringIO())


def test_time_is_that_of_all_attempts_also_of_the_killed(run: RunDir) -> None:
    head = page(run, "completed", "done")[0]
    assert head == "✓ completed  25 steps · in 2m 00s · 2 attempts · loss 1.0000"


def test_stopped_and_failed_say_what_to_type(run: RunDir) -> None:
    said = "\n".join(page(run, "stopped", "stop", checkpoint="checkpoints/step-00000025"))
    assert "saved at step 25 (stop)" in said and "launch resume tiny-abcd" in said
    said = "\n".join(page(run, "stopped", "stop", message="the save was not done"))
    assert "the save was not done (stop)" in said
    said = "\n".join(page(run, "failed", "error", rank=0, message="rank 0: OSError: disk full"))
    assert "✗ failed     rank 0: OSError: disk full" in said and "launch why tiny-abcd" in said and "  log  " in said


def test_a_line_of_progress_says_what_is_known() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("step", "max_steps", "loss", "tokens_per_second", "eta_seconds"))
    assert progress_line(**nothing) == ""
    assert progress_line(**nothing | {"step": 3}) == "step 3"
    every = {"step": 3, "max_steps": 9, "loss": 1.2345, "tokens_per_second": 12_345.0, "eta_seconds": 80.0}
    assert progress_line(**every) == "step 3/9 · loss 1.234 · 12.3k tokens/s · ETA 1m 20s"
