"""A person with a recipe: before a SLURM that is not one, and on this machine with runs that end at once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.backends.base import refuse_if_alive
from launchyard.launcher.backends.local import backend
from launchyard.run.append import Appender
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from tests.launcher.backends.slurm.conftest import place as place
from tests.launcher.backends.slurm.conftest import slurm as slurm
from tests.support.typed import Place

FAILS = "fails"  # a file beside the recipe with the run ids, one a line, that fail


class ShortRuns:
    """In place of the local backend: each run is a process that owns it, makes two steps and ends.

    `company`: the first one ends only once the second has begun.
    """

    def __init__(self, folder: Path, *, company: bool = False) -> None:
        self.folder = folder
        self.company = company
        self.environments: dict[int, dict[str, str]] = {}  # by process

    def submit(self, run: RunDir, plan: Any, overrides: dict[str, Any]) -> Job:
        refuse_if_alive(run)
        attempt = len(run.attempts())
        if (pid := os.fork()) == 0:
            try:
                self._own(run, plan.run_id, attempt, overrides)
            finally:
                os._exit(0)
        self.environments[pid] = dict(plan.environment)
        alive = True
        while len(run.attempts()) == attempt:
            assert alive, "it ended before it owned the run"
            alive = started_at(pid) is not None  # looked at before the attempts: it may claim one and end in between
            time.sleep(0.005)
        return run.job(attempt)

    def _own(self, run: RunDir, run_id: str, attempt: int, overrides: dict[str, Any]) -> None:
        pid = os.getpid()
        run.claim_attempt(
            Job(
                attempt=attempt, backend="local", job_id=str(pid), host=socket.gethostname(), pid=pid,
                pid_started=started_at(pid) or 0.0, created=time.time(), nnodes=1, nproc_per_node=1, device="cpu",
                overrides=overrides,
            )
        )  # fmt: skip
        time.sleep(0.2)
        if self.company and run.url.endswith("-1"):
            second = RunDir(f"{run.url[:-1]}2")
            assert wait_until(lambda: bool(second.attempts()), seconds=60)
        fails = run_id in (self.folder / FAILS).read_text().split()
        rows = Appender(run, f"metrics/steps-{attempt:04d}")
        checks = Appender(run, f"metrics/validation-{attempt:04d}")
        for step in (1, 2):
            row = {"step": step, "loss": 4.0 - step, "attempt": attempt, "time": time.time()}
            rows.add({**row, "step_seconds": 0.1, "tokens_per_second": 100.0})
            checks.add({**row, "loss": 3.0 + step / 10, "seconds": 0.1})
        rows.flush()
        checks.flush()
        record = OutcomeRecord(
            outcome="failed" if fails else "completed", reason="error" if fails else "done", message="no reason",
            attempt=attempt, step=2, time=time.time(),
        )  # fmt: skip
        run.write_outcome(record)
        run.write_outcome(record, of_run=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch, capsys, {"scheduler": "local"})
    (made.here / FAILS).write_text("")
    monkeypatch.setattr(backend, "submit", ShortRuns(made.here).submit)
    yield made
    made.close()
