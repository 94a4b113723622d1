"""Drills: a preemption, a killed worker, a lost or a frozen node is injected into a live run, and the recovery timed.

Processes are killed on the machine where they live: here, or on a node of a scheduler, which runs this module there:
`python -m launchyard.launcher.runs.drill RUN_URL FAULT ATTEMPT`, which prints the moment of the fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import AGENT_PID
from launchyard.host.processes import descendants, end_all, end_marked, marked, variable_of, wait_until, worker_rank
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import load_backend, owner_alive
from launchyard.launcher.runs.facts import RunFacts
from launchyard.run import events
from launchyard.run.layout import STEPS
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows

if TYPE_CHECKING:
    import psutil

Kind = Literal["preempt", "kill", "node-loss", "freeze"]
POLL_SECONDS = 0.05
FREEZE_SECONDS = 15.0
MODULE = "launchyard.launcher.runs.drill"
STRUCK = "struck at"  # printed by the module before the moment, among other output of a scheduler


@dataclass(frozen=True)
class Drill:
    """The result. Seconds since the fault: the signal itself, or the notice; None: did not happen."""

    kind: Kind
    by: str
    attempt: int
    next_attempt: int
    agreed_seconds: float | None
    committed_seconds: float | None
    ended_seconds: float
    claimed_seconds: float
    first_step_seconds: float
    reached_step: int
    resumed_step: int
    steps_lost: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The result as lines for people."""
        times = [
            ("agreed to stop", self.agreed_seconds),
            ("checkpoint committed", self.committed_seconds),
            (f"attempt {self.attempt} ended", self.ended_seconds),
            (f"attempt {self.next_attempt} began", self.claimed_seconds),
            ("first step again", self.first_step_seconds),
        ]
        rows = [f"  {label:<24} {seconds:6.2f} s" for label, seconds in times if seconds is not None]
        lost = f"{self.steps_lost} lost" if self.steps_lost else "none lost"
        steps = f"  {'steps':<24} {lost} (reached {self.reached_step}, resumed from {self.resumed_step})"
        return [f"{self.kind} by {self.by}, seconds after it:", *rows, steps]


def rehearse(run: RunDir, kind: Kind, *, again: Callable[[], Job], timeout_seconds: float = 300.0) -> Drill:
    """Injects the fault and waits for the run to recover. UserError unless the run trains, here or at a scheduler.

    again: starts the run anew after the loss of its node, as a person or another machine would.
    """
    job = _training_job(run)
    deadline = time.monotonic() + timeout_seconds
    by, began = _INJECTIONS[kind](run, job)
    if kind == "node-loss" and not _scheduled(job):
        _wait(lambda: not owner_alive(run, job) and not marked(run.url), deadline, "the processes to be gone")
        ended = time.time()
        again()
    else:
        _wait(lambda: run.outcome(job.attempt) is not None, deadline, f"attempt {job.attempt} to end")
        ended = _outcome_time(run, job)
    _wait(lambda: _went_on(run, job) or _over(run), deadline, "the next attempt")
    _refuse_end(run, job)
    following = job.attempt + 1
    _wait(lambda: _first_row(run, following) is not None or _over(run), deadline, "its first step")
    return _measure(run, kind, by, job, began=began, ended=ended)


def _measure(run: RunDir, kind: Kind, by: str, job: Job, *, began: float, ended: float) -> Drill:
    following = job.attempt + 1
    row = _first_row(run, following)
    if row is None:
        raise LaunchError("the run ended before it made a step again", hint=f"launch why {RunFacts(run).run_id}")
    recorded = run.events(job.attempt)
    stopping = _time_of(recorded, events.STOPPING, began)
    started = next(event for event in run.events(following) if event["event"] == events.STARTED)
    rows = last_rows(run, [job.attempt])
    reached = int(rows[-1]["step"]) if rows else 0

    def since(moment: float | None) -> float | None:
        return None if moment is None else round(moment - began, 3)

    return Drill(
        kind=kind,
        by=by,
        attempt=job.attempt,
        next_attempt=following,
        agreed_seconds=since(stopping),
        committed_seconds=since(_time_of(recorded, events.SAVED, stopping)) if stopping else None,
        ended_seconds=round(ended - began, 3),
        claimed_seconds=round(run.job(following).created - began, 3),
        first_step_seconds=round(float(row["time"]) - began, 3),
        reached_step=int(reached),
        resumed_step=int(started["step"]),
        steps_lost=max(0, int(reached) - int(started["step"])),
    )


# -- faults: each returns its description and its time ---------------------------------------------------------------
def _preempt(run: RunDir, job: Job) -> tuple[str, float]:
    began = time.time()
    return load_backend(job.backend).notify(run, job), began


def _kill(run: RunDir, job: Job) -> tuple[str, float]:
    return "SIGKILL of one worker", _on_last_node(run, job, "kill") if _scheduled(job) else kill_worker(run, job)


def kill_worker(run: RunDir, job: Job) -> float:
    """SIGKILL to one worker of this machine, the last of the ranks. Returns the time."""
    return _signal_worker(run, job, signal.SIGKILL)


def freeze_worker(run: RunDir, job: Job) -> float:
    """SIGSTOP to the same one, until its agent has noticed and ends it."""
    return _signal_worker(run, job, signal.SIGSTOP)


def _signal_worker(run: RunDir, job: Job, number: signal.Signals) -> float:
    here = [process for process in marked(run.url, attempt=job.attempt) if _on_this_node(process.pid)]
    workers = {rank: process for process in here if (rank := worker_rank(process)) is not None}
    if not workers:
        raise UserError("no worker of this run was found on this machine", hint="launch status")
    moment = time.time()
    workers[max(workers)].send_signal(number)
    return moment


def _lose_node(run: RunDir, job: Job) -> tuple[str, float]:
    """SIGKILL to all processes of the run at once, like a power cut; of a job, to those on its last node."""
    moment = time.time()
    if not _scheduled(job):
        end_all(descendants(job.pid))
        end_marked(run.url)
    else:
        moment = _on_last_node(run, job, "node-loss")
    return "SIGKILL of all its processes there", moment


def lose_agent(run: RunDir, job: Job) -> float:
    """SIGKILL to the agents of this machine; their workers die with them. Returns the time."""
    processes = _agents_and_workers(run, job)
    moment = time.time()
    end_all(processes)
    return moment


def freeze_agent(run: RunDir, job: Job) -> float:
    """SIGSTOP to the same ones, which go on after a while, as far as they still live. Returns the time."""
    import psutil

    processes = _agents_and_workers(run, job)
    moment = time.time()
    for process in processes:
        process.suspend()
    time.sleep(FREEZE_SECONDS)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.resume()
    return moment


def _agents_and_workers(run: RunDir, job: Job) -> list[psutil.Process]:
    """The agents first, by what they have told their workers."""
    here = [process for process in marked(run.url, attempt=job.attempt) if _on_this_node(process.pid)]
    agents = {int(number) for process in here if (number := variable_of(process.pid, AGENT_PID)) is not None}
    return [process for agent in sorted(agents) for process in descendants(agent)]


def _freeze(run: RunDir, job: Job) -> tuple[str, float]:
    """Where nobody would notice a frozen agent before it wakes, a worker is frozen, which its agent notices."""
    if not _scheduled(job):
        return "SIGSTOP of one worker", freeze_worker(run, job)
    if not load_backend(job.backend).TRAITS.notices_silence:
        return "SIGSTOP of one worker", _on_last_node(run, job, "freeze-worker")
    return f"SIGSTOP of all its processes there for {FREEZE_SECONDS:.0f} s", _on_last_node(run, job, "freeze")


def _scheduled(job: Job) -> bool:
    return load_backend(job.backend).TRAITS.scheduled


def _on_this_node(pid: int) -> bool:
    """Returns True for a process of this node: nodes of a sandbox share one machine, but not the host name."""
    try:
        return os.readlink(f"/proc/{pid}/ns/uts") == os.readlink("/proc/self/ns/uts")
    except OSError:  # not Linux
        return True


def _on_last_node(run: RunDir, job: Job, fault: str) -> float:
    """Injects the fault on the last node; of several, the owner is on another. Returns the time on that node."""
    printed = load_backend(job.backend).run_on_node(run, job, ["-m", MODULE, run.url, fault, str(job.attempt)])
    return float(printed.rpartition(STRUCK)[2].split()[0])


Injection = Callable[[RunDir, Job], tuple[str, float]]
_INJECTIONS: dict[Kind, Injection] = {"preempt": _preempt, "kill": _kill, "node-loss": _lose_node, "freeze": _freeze}


# -- watching --------------------------------------------------------------------------------------------------------
def _training_job(run: RunDir) -> Job:
    job = newest_job(run)
    run_id = RunFacts(run).run_id
    if job is None or not owner_alive(run, job):
        raise UserError(
            f"{run_id} is not running, and a drill needs a live run", hint=f"launch resume {run_id} --detach"
        )
    if not _scheduled(job) and job.host != socket.gethostname():
        raise UserError(
            f"{run_id} runs on {job.host}; a drill works on the machine itself", hint=f"do it on {job.host}"
        )
    if not wait_until(lambda: _first_row(run, job.attempt) is not None or not owner_alive(run, job), seconds=60):
        raise UserError(f"{run_id} has made no step within a minute; a drill needs a run that trains")
    return job


def _wait(done: Callable[[], bool], deadline: float, what: str) -> None:
    if not wait_until(done, seconds=deadline - time.monotonic(), every=POLL_SECONDS):
        raise LaunchError(f"gave up waiting for {what}", hint="launch why RUN, launch logs RUN")


def _went_on(run: RunDir, job: Job) -> bool:
    return run.attempts()[-1] > job.attempt


def _over(run: RunDir) -> bool:
    record = run.outcome()
    return record is not None and record.attempt >= run.attempts()[-1]


def _refuse_end(run: RunDir, job: Job) -> None:
    if not _went_on(run, job):
        record = run.outcome()
        ending = f"{record.outcome}: {record.message}" if record else "no outcome"
        raise LaunchError(f"the run did not go on ({ending})", hint=f"launch why {RunFacts(run).run_id}")


def _first_row(run: RunDir, attempt: int) -> dict[str, Any] | None:
    return next(run.attempt_rows(STEPS, attempt), None)


def _time_of(recorded: list[dict[str, Any]], name: str, after: float) -> float | None:
    """The time of the first event of that name after a moment; events are written a little later than they happen."""
    return next((float(event["time"]) for event in recorded if event["event"] == name and event["time"] >= after), None)


def _outcome_time(run: RunDir, job: Job) -> float:
    record = run.outcome(job.attempt)
    assert record is not None
    return record.time


_ON_A_NODE: dict[str, Callable[[RunDir, Job], float]] = {
    "kill": kill_worker,
    "node-loss": lose_agent,
    "freeze": freeze_agent,
    "freeze-worker": freeze_worker,
}


def main(argv: list[str]) -> int:
    run = RunDir(argv[1])
    print(STRUCK, _ON_A_NODE[argv[2]](run, run.job(int(argv[3]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
