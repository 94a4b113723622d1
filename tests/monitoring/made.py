"""Run directories as runs leave them, made up in no time: attempts with rows, events, targets and outcomes."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

from launchyard.host.processes import started_at
from launchyard.launcher.runs.registry import register
from launchyard.run.append import Appender
from launchyard.run.records import Job, OutcomeRecord, Submission, Target
from launchyard.run.rundir import RunDir
from tests.support.standin import make_run

STEP = 0.5  # seconds
BEGAN = 1_700_000_000.0


class Made:
    """A run that grows attempt by attempt; `clock` is where its time is."""

    def __init__(self, folder: Path, run_id: str = "tiny-abcd", *, clock: float = BEGAN) -> None:
        self.run: RunDir = make_run(folder, run_id=run_id)
        register(run_id, "tiny", self.run.url)
        self.run_id, self.clock, self.attempt = run_id, clock, -1

    def begin(
        self, *, alive: bool = False, workers: int = 1, backend: str = "local", start: int | None = 0, job: str = "7"
    ) -> None:
        """Claim the next attempt; two seconds later it trains, from `start`: None of one that has not got so far."""
        self.attempt += 1
        pid = os.getpid()
        self.run.claim_attempt(
            Job(
                attempt=self.attempt, backend=backend, job_id=job, host=socket.gethostname(), pid=pid,
                pid_started=(started_at(pid) or 0.0) - (0 if alive else 100), created=self.clock, nnodes=1,
                nproc_per_node=workers, device="cpu",
            )
        )  # fmt: skip
        self.clock += 2.0
        if start is not None:
            self.event("started", step=start, resumed=start > 0)

    def event(self, name: str, **facts: Any) -> None:
        Appender(self.run, f"{self.run.attempt_dir(self.attempt)}/events").add(
            {"event": name, "time": self.clock, **facts}
        )

    def steps(self, steps: range) -> None:
        appender = Appender(self.run, f"metrics/steps-{self.attempt:04d}", flush_seconds=1e9)
        for step in steps:
            self.clock += STEP
            phases = {"forward_backward": 0.4, "data_wait": 0.05, "optimizer": 0.05}
            appender.add(
                {
                    "step": step, "loss": 2 + 8 * math.exp(-step / 20), "grad_norm": 1.0, "lr": 1e-3,
                    "tokens_seen": 64 * step, "tokens_per_second": 64 / STEP, "step_seconds": STEP,
                    "data_wait_seconds": 0.05, "data_hash": f"{step:016x}", "attempt": self.attempt,
                    "phases": phases | ({"init": 2.0} if step == steps[0] else {}), "time": self.clock,
                }
            )  # fmt: skip
        appender.flush()

    def save(self, step: int, kind: str = "permanent") -> None:
        manifest = {
            "step": step, "attempt": self.attempt, "world_size": 1, "kind": kind, "created": self.clock,
            "train_state": {"step": step}, "model": {}, "data_digest": "", "recipe_hash": "", "versions": {},
            "files": {}, "tensors": {},
        }  # fmt: skip
        self.run.write_json(f"{self.run.checkpoint_dir(step)}/manifest.json", manifest)
        self.event("saved", step=step, kind=kind, seconds=0.2, stall_seconds=0.05)

    def end(self, outcome: Any, reason: str, step: int, *, of_run: bool = False, message: str = "") -> None:
        self.clock += 0.5
        record = OutcomeRecord(
            outcome=outcome, reason=reason, message=message, attempt=self.attempt, step=step, time=self.clock
        )
        self.run.write_outcome(record)
        if of_run:
            self.run.write_outcome(record, of_run=True)

    def listen(self, *ports: int, node: str = "node1") -> None:
        for rank, port in enumerate(ports):
            target = Target(rank=rank, url=f"http://127.0.0.1:{port}/metrics", node=node, time=self.clock)
            self.run.register_target(self.attempt, target)

    def queue(self, *, waited: float) -> None:
        """It was submitted to a scheduler so long ago."""
        number = self.run.submit(
            Submission(backend="slurm", submitted=self.clock - waited, nnodes=1, nproc_per_node=1, device="cpu")
        )
        self.run.accepted(number, "7")


def preempted_twice(folder: Path) -> Made:
    """100 steps in three attempts: preempted with a save at 40, killed at 75 with a save at 60, then completed."""
    made = Made(folder)
    made.begin()
    made.steps(range(1, 41))
    made.save(40, "temporary")
    made.event("stopping", step=40, reason="preempted")
    made.event("finished", step=40)
    made.end("stopped", "preempted", 40)
    made.clock += 3
    made.begin(start=40)
    made.steps(range(41, 61))
    made.save(60)
    made.steps(range(61, 76))
    made.end("stopped", "preempted", 75, message="no time to save")
    made.clock += 3
    made.begin(start=60)
    made.steps(range(61, 101))
    made.event("validated", step=100, loss=2.1, seconds=0.3)
    made.save(100)
    made.event("finished", step=100)
    made.end("completed", "done", 100, of_run=True, message="all 100 of 100 steps")
    return made
