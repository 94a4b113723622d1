"""The process of a batch script: the owner of a run inside its allocation. Its argument is the URL of the run.

Starts one agent on each node with srun, which stays. Tries again here after a failure, and after a preemption or at the
time limit gives the job back to be started again; nothing else does that. The scheduler's signals are notices: only a
person's stop ends a run before it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from launchyard.errors import LaunchError
from launchyard.host.folders import job_folder, log_folder
from launchyard.host.ports import rendezvous_port
from launchyard.launcher.agent.conclusion import exit_code, last_step
from launchyard.launcher.agent.fleet.crew import Ending
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import Owner, serve
from launchyard.launcher.agent.ownership import attempts_of
from launchyard.launcher.agent.root_cause import LOST_PEER, NO_OUTCOME, find_cause
from launchyard.launcher.agent.signals import CANCELLED, POLL_SECONDS, Signals, log_line
from launchyard.launcher.backends.base import judge_job
from launchyard.launcher.backends.slurm.client import Controller, JobFacts
from launchyard.launcher.backends.slurm.steps import AgentSteps
from launchyard.run import layout
from launchyard.run.layout import is_job_script
from launchyard.run.lease import LEASE_SECONDS, Heartbeat
from launchyard.run.records import SCANCEL, Job, OutcomeRecord, Shape, Submission
from launchyard.run.rundir import RunDir

GIVE_BACK_SECONDS = 10.0  # between two tries, while the controller does not answer
START_SECONDS = 60.0  # from the first agent to the last, until one that is missing counts as lost
GONE_STATES = ("CANCELLED", "DEADLINE")
# srun's code if an agent was killed by a notice: its handlers were not there yet.
NOTICE_CODES = tuple(128 + number for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))
QUEUED_STATES = ("PENDING", "REQUEUED", "REQUEUE_HOLD")


class Batch:
    """One start of one job."""

    def __init__(
        self, run: RunDir, job_id: str, submission: Submission, signals: Signals, *, restarts: int = 0, notice: int = 0
    ) -> None:
        """`restarts`: of this job by SLURM, so far. `notice`: seconds to save in before its time is over."""
        self._run = run
        self._job_id = job_id
        self._submission = submission
        self._signals = signals
        self._restarts = restarts
        self._notice = notice
        self._slurm = Controller(submission.env)
        self._steps: AgentSteps | None = None
        end = self._slurm.end_time(job_id)
        self._leave_at = None if end is None else end - notice

    def owner(self) -> Owner:
        waiting = self._submission
        owner = Owner(
            self._run,
            waiting.backend,
            self._job_id,
            waiting.shape,
            waiting.overrides,
            self._signals,
            self.run_nodes,
            judge_job,
            self.give_back,
            history=list(attempts_of(self._run, self._job_id))[::-1],
            patience=LEASE_SECONDS + GIVE_BACK_SECONDS,  # where squeue is not on the nodes
            continues=waiting.continues if waiting.job_id == self._job_id else "",
            acquire_resources=self.acquire_resources,
        )
        owner.kept_step = self._kept_step
        return owner

    def _kept_step(self) -> int | None:
        return None if self._steps is None else self._steps.crew.kept_step()

    def acquire_resources(self, goes_on: Callable[[], bool]) -> Shape | None:
        """Waits for an agent in the place of each that was lost; None if a stop is requested meanwhile.

        The first attempt starts them itself, and one in which none can be started has to tell why.
        """
        shape = self._submission.shape
        steps = self._steps
        if steps is None:
            return shape
        steps.try_again()
        until = time.monotonic() + START_SECONDS
        while not steps.crew.fill():
            if not steps.mend() and (not self._enough(steps) or time.monotonic() > until):
                break
            if self._time_is_over():
                break
            if not goes_on():
                return None
            time.sleep(POLL_SECONDS)
        return shape

    def run_nodes(self, job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        """All agents of an attempt, to the end of their parts."""
        forwarded = False

        def poll() -> None:
            nonlocal forwarded
            on_poll()
            if not forwarded and (reason := self._signals.reason()) is not None:
                forwarded = self._forward_stop(job.attempt, reason)

        steps = self._steps = self._steps or AgentSteps(self._submission)
        if not self._all_there(steps, poll):
            code = steps.code
            here = len(steps.crew.places())
            self._dismiss()
            return self._conclude(job, Ending(unstarted=self._submission.nnodes - here), code)
        self._write_nodes(job, steps)
        ending = steps.crew.run(
            job,
            port=rendezvous_port(int(self._job_id), job.attempt),
            job_end=self._leave_at,
            on_poll=poll,
            stop=self._signals.reason,
        )
        return self._conclude(job, ending, ending.codes.get(0))

    def _write_nodes(self, job: Job, steps: AgentSteps) -> None:
        """For those who want to reach a node of the attempt; spare ones are not among them."""
        nodes = [
            {"rank": rank, "node": agent.place, "host": agent.host, "pid": agent.pid}
            for rank, agent in enumerate(steps.crew.taken())
        ]
        with contextlib.suppress(OSError):
            self._run.write_json(layout.nodes(job.attempt), nodes)

    def _all_there(self, steps: AgentSteps, poll: Callable[[], None]) -> bool:
        """Waits for all agents; in vain if their step ends, or for long after the first of them has come."""
        first_at: float | None = None
        while not steps.crew.fill():
            poll()
            if not steps.mend() and not self._enough(steps):
                return False
            first_at = first_at or (time.monotonic() if steps.crew.places() else None)
            if first_at is not None and time.monotonic() - first_at > START_SECONDS:
                return False
            time.sleep(POLL_SECONDS / 2)
        return True

    def _enough(self, steps: AgentSteps) -> bool:
        """Returns True if there are as many agents as take part: those that are not free are about to be."""
        return len(steps.crew.places()) >= self._submission.nnodes

    def _conclude(self, job: Job, ending: Ending, code: int | None) -> OutcomeRecord:
        """A lost node is a better cause than the errors of those who lost it."""
        record = self._run.outcome(job.attempt)
        self._signals.preempted |= self._time_is_over()
        if record is None or record.outcome == "failed":
            seen = self._slurm.job_facts(self._job_id)
            self._signals.preempted |= seen.preempted or self._is_put_back(
                seen
            )  # told to the agents alone, or to nobody
        unexplained = record is None or record.reason in (LOST_PEER, NO_OUTCOME)
        unstarted = ending.unstarted and code not in NOTICE_CODES
        if (ending.lost or unstarted) and unexplained and not (self._signals.preempted or self._is_cancelled()):
            reason, message = ending.loss()
            facts: dict[str, Any] = {"attempt": job.attempt, "time": time.time()}
            facts["step"] = last_step(self._run, job.attempt)
            return self._record(OutcomeRecord(outcome="failed", reason=reason, message=message, **facts))
        return record or self._compose(job.attempt, code, unstarted=bool(ending.unstarted))

    def _is_cancelled(self) -> bool:
        request = self._run.stop_requested()
        return request is not None and request.get("reason") == CANCELLED

    def _time_is_over(self) -> bool:
        return self._leave_at is not None and time.time() > self._leave_at

    def _dismiss(self) -> None:
        """The agents leave; another attempt here starts others."""
        steps = self._steps
        self._steps = None
        if steps is not None:
            steps.close()

    def close(self) -> None:
        self._dismiss()

    def _forward_stop(self, attempt: int, reason: str) -> bool:
        """Writes a notice into the run directory, for agents that got no signal of their own."""
        with contextlib.suppress(OSError):
            self._run.give_notice(attempt, reason)
            return True
        return False

    def _compose(self, attempt: int, code: int | None, *, unstarted: bool) -> OutcomeRecord:
        """Composes the outcome of an attempt whose first agent is gone and left none."""
        facts: dict[str, Any] = {"attempt": attempt, "time": time.time(), "step": last_step(self._run, attempt)}
        if self._is_cancelled():
            return OutcomeRecord(outcome="stopped", reason=CANCELLED, message="cancelled, nothing was saved", **facts)
        if code in NOTICE_CODES or (unstarted and self._signals.preempted):
            message = "the scheduler took the nodes before the agents had begun"
            return self._record(OutcomeRecord(outcome="stopped", reason="preempted", message=message, **facts))
        if self._signals.preempted:
            message = "the scheduler took the nodes before the run could save"
            return OutcomeRecord(outcome="failed", reason="not saved", message=message, **facts)
        cause = find_cause(self._run, attempt, node_rank=0, exit_code=code)
        record = OutcomeRecord(
            outcome="failed", reason=cause.reason, message=cause.message, fatal=cause.fatal, rank=cause.rank, **facts
        )
        return self._record(record)

    def _record(self, record: OutcomeRecord) -> OutcomeRecord:
        """Writes the outcome of an attempt, unless its disk is full: the job can be given back all the same."""
        try:
            self._run.write_outcome(record)
        except OSError as error:
            log_line(f"the outcome of attempt {record.attempt} could not be written: {error}")
        return record

    def give_back(self, record: OutcomeRecord) -> bool | None:
        """Has this job started again; if the site does not requeue, submits the same script as a new job.

        While the controller does not answer it tries again, until a stop is requested: the run is saved, and time is
        all that it costs. Returns False if the run ends here; None if nothing can be done here, and it goes on here.
        """
        self._dismiss()
        heartbeat = Heartbeat(self._run, record.attempt)
        asked_at = float("-inf")
        alone = shutil.which("scontrol") is None and shutil.which("sbatch") is None
        until = time.monotonic() + self._notice if alone else float("inf")
        if alone:
            log_line(f"{socket.gethostname()} has neither scontrol nor sbatch: SLURM itself may start the job again")
        while time.monotonic() < until:
            if not alone and time.monotonic() - asked_at >= GIVE_BACK_SECONDS:
                given = self._try_to_give_back()
                if given is not None:
                    return given
                log_line("SLURM's controller does not answer: the job is given back when it does")
                asked_at = time.monotonic()
            heartbeat.beat()
            if heartbeat.superseded or self._signals.stop or self._run.stop_requested() is not None:
                return False
            time.sleep(POLL_SECONDS if self._run.local else 1.0)
        log_line(f"the nodes are still ours after {self._notice} s: the run goes on here")
        return None

    def _try_to_give_back(self) -> bool | None:
        """None: the controller does not answer."""
        seen = self._slurm.job_facts(self._job_id)
        if self._is_put_back(seen):
            return True
        # One that ends while we are here, and has not been preempted, was ended by a person: scancel. Its time was not
        # over. One that PreemptMode=CANCEL ends can be put back like any other.
        early = self._leave_at is None or time.time() < self._leave_at
        ending = seen.state.startswith(GONE_STATES) or (seen.state == "COMPLETING" and early)
        if ending and not seen.preempted:
            self._signals.stop = self._signals.stop or SCANCEL
            return False
        requeued = self._slurm.requeue(self._job_id)
        if requeued is False:
            self._submit_again()
        return None if requeued is None else True

    def _is_put_back(self, seen: JobFacts) -> bool:
        """Is SLURM itself putting the job back, as after the loss of a node? It counts the restart at once."""
        return seen.state.startswith(QUEUED_STATES) or seen.restarts > self._restarts

    def _submit_again(self) -> None:
        """Sends the same script as a new job, which is the run from now on: it goes on with what this one has done."""
        number = self._record_next()
        folder = job_folder(self._run.url, log_folder())
        try:
            job_id = self._slurm.submit(newest_script(folder), dependency="singleton", known=(self._job_id,))
        except LaunchError as error:
            if number is not None:
                self._run.withdraw(number)
            # No UserError: from an owner that means that another job has the run, and no outcome would be written.
            raise LaunchError(f"the site neither requeues the job nor takes a new one: {error}") from error
        log_line(f"SLURM does not requeue job {self._job_id}: job {job_id} goes on with the run")
        if number is not None:
            self._run.accepted(number, job_id)

    def _record_next(self) -> int | None:
        """The number of the submission to come; None on a full disk, where the new job finds this one's."""
        waiting = self._submission.model_copy(
            update={"job_id": "", "submitted": time.time(), "continues": self._job_id}
        )
        try:
            return self._run.submit(waiting)
        except OSError as error:
            log_line(f"the next submission could not be written down: {error}")
            return None


def newest_script(folder: str) -> str:
    return os.path.join(folder, max(name for name in os.listdir(folder) if is_job_script(name)))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launchyard.launcher.backends.slurm.owner", description="Owns a run inside its allocation."
    )
    parser.add_argument("run_url")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--notice", type=int, default=0, help="seconds to save in, before the job's time is over")
    parser.add_argument("--nodes", default="", help="for the log")
    options = parser.parse_args(argv[1:])
    signals = Signals(term_is_notice=True)
    signals.install()
    run = RunDir(options.run_url)
    adopt_retry_budget(run)
    submission = run.newest_submission()
    if submission is None:  # started before sbatch had answered, or by hand
        submission = run.submission(0)
    last = run.outcome()
    if last is not None and last.outcome == "completed" and last.time > submission.submitted:
        log_line("started again, but the run is complete")
        return exit_code(last)
    batch = Batch(run, options.job_id, submission, signals, restarts=options.restarts, notice=options.notice)
    where = f"job {options.job_id} on {options.nodes or socket.gethostname()}, start {options.restarts}"
    try:
        return serve(batch.owner(), where=where)
    finally:
        batch.close()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until the handlers are there
    sys.exit(main(sys.argv))
