"""The owner of a run: makes one attempt after another, until the policy or a person ends it.

The same in every place; its maker passes in how the nodes of an attempt are started, and how a job is given back to be
started again elsewhere. It writes the outcome of the run last.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launchyard.errors import EXIT_FAILED, EXIT_STOPPED, UserError
from launchyard.host.processes import end_marked
from launchyard.launcher.agent.conclusion import exit_code
from launchyard.launcher.agent.notify import Notifier, notifier_of
from launchyard.launcher.agent.ownership import Judge, claim_next, newest_job
from launchyard.launcher.agent.restart_policy import AGAIN_REASONS, AttemptSummary, after_attempt
from launchyard.launcher.agent.root_cause import OTHER_CODE
from launchyard.launcher.agent.signals import POLL_SECONDS, Signals, log_line
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.lease import Heartbeat
from launchyard.run.own_code import what_differs
from launchyard.run.records import Job, OutcomeRecord, Shape
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.errors import StoreError

if TYPE_CHECKING:
    from launchyard.training.recipe import Recipe

ASK_SECONDS = {True: 0.5, False: 3.0}  # local run directory, remote one
FAREWELL_SECONDS = 20.0  # retry budget for the last write of an owner that fails


@dataclass
class Owner:
    """`run_nodes` runs all nodes of an attempt to its end. `judge`: finds out if an earlier owner lives.

    `give_back`: let the scheduler start this job again, elsewhere and later; False if it is not to be, None if it is
    impossible and the nodes are still ours. Then, and where there is none, the next attempt follows here. `history`:
    attempts that this job has made already, or the job that it `continues`. `patience`: seconds for an earlier owner
    that only its heartbeat tells of. `acquire_resources`: waits for what an attempt needs while its argument returns
    True; the shape of that attempt, or None if it gave up. `kept_step`: the newest step that the memory of its agents
    holds.
    """

    run: RunDir
    backend: str
    job_id: str
    shape: Shape
    overrides: dict[str, Any]
    signals: Signals
    run_nodes: Callable[[Job, Callable[[], None]], OutcomeRecord]
    judge: Judge
    give_back: Callable[[OutcomeRecord], bool | None] | None = None
    history: list[AttemptSummary] = field(default_factory=list)
    continues: str = ""
    patience: float = 0.0
    acquire_resources: Callable[[Callable[[], bool]], Shape | None] | None = None
    since: float = field(default_factory=time.time)
    log: Callable[[str], None] = log_line
    kept_step: Callable[[], int | None] = lambda: None
    _claimed: bool = False
    _notifies: tuple[int, Notifier] | None = None  # of an attempt
    _furthest: int = 0  # the newest step that was ever kept or saved

    def wait_for_resources(self, last: Job | None = None) -> bool:
        """Called before an attempt is claimed. Returns False if a stop is requested before its resources are there."""
        if self.acquire_resources is None:
            return True
        if not self.history:
            self._forget_last_end()
        heartbeat = Heartbeat(self.run, last.attempt) if last else None
        checked_at = 0.0

        def goes_on() -> bool:
            nonlocal checked_at
            if heartbeat is not None:
                heartbeat.beat()
                if heartbeat.superseded:
                    self.signals.stop = self.signals.stop or "terminated"
            now = time.monotonic()
            if not self.signals.stop and now - checked_at < ASK_SECONDS[self.run.local]:
                return True
            checked_at = now
            return self._stop_wanted() is None

        shape = self.acquire_resources(goes_on)
        self.shape = shape or self.shape
        return shape is not None

    def claim(self) -> Job:
        """Claims the next attempt; ends all that an earlier one has left running on this machine."""
        job = claim_next(
            self.run,
            backend=self.backend,
            job_id=self.job_id,
            shape=self.shape,
            overrides=self.overrides,
            judge=self.judge,
            continues=self.continues,
            patience=self.patience,
        )
        if not self._claimed:  # what is left of our own attempts was ended with them; the next torchrun stands by
            end_marked(self.run.url)
        self._claimed = True
        if not self.history:
            self._forget_last_end()
        return job

    def own(self, job: Job) -> OutcomeRecord:
        """Run attempts until the run ends or the job is given back."""
        while True:
            before = newest_checkpoint(self.run)
            self.signals.preempted = False
            record = self._attempt(job)
            after = newest_checkpoint(self.run)
            progressed = (after is not None and (before is None or after > before)) or self._kept_more(before or 0)
            self.history.append(
                AttemptSummary(
                    job.attempt,
                    record.outcome,
                    record.reason,
                    record.fatal,
                    progressed=progressed,
                    stepped=record.step is not None,
                )
            )
            moves = self.give_back is not None and (record.outcome == "stopped" or self.signals.preempted)
            again, why = self._goes_on(job, moves=moves)
            self.log(f"attempt {job.attempt} {record.outcome} ({record.reason}): {record.message}; {why}")
            if not again:
                return self.end(record)
            given = self.give_back(record) if moves and self.give_back is not None else None
            if record.reason in AGAIN_REASONS and given is not False:
                self._notifier(job).moves_on(record)
            if given is not None:
                return record if given else self.end(record)
            if not self.wait_for_resources(job):
                return self.end(record)
            job = self.claim()

    def _kept_more(self, before: int) -> bool:
        """Is more in memory than was ever there, or saved? Whoever fails at the same step again and again has not."""
        self._furthest = max(self._furthest, before)
        kept = self.kept_step() or 0
        more = kept > self._furthest
        self._furthest = max(self._furthest, kept)
        return more

    def _attempt(self, job: Job) -> OutcomeRecord:
        if difference := what_differs(self.run):  # its workers would fail with the same error
            record = OutcomeRecord(
                outcome="failed",
                reason=OTHER_CODE,
                message=difference,
                fatal=True,
                attempt=job.attempt,
                time=time.time(),
            )
            self.run.write_outcome(record)
            return record
        heartbeat = Heartbeat(self.run, job.attempt)
        notifier = self._notifier(job)

        def on_poll() -> None:
            heartbeat.beat()
            notifier.poll()
            if heartbeat.superseded:  # we were taken for dead: no process of ours may go on
                self.signals.stop = self.signals.stop or "terminated"

        return self.run_nodes(job, on_poll)

    def _goes_on(self, job: Job, *, moves: bool) -> tuple[bool, str]:
        """Decides, and waits for the back-off to pass unless a stop is requested meanwhile."""
        decision = after_attempt(self.history, max_failures=max_failures(self.run, job))
        if decision.action == "end":
            return False, decision.why
        heartbeat = Heartbeat(self.run, job.attempt)
        until = time.monotonic() + decision.delay_seconds
        while not moves and not self._stop_wanted() and time.monotonic() < until:
            heartbeat.beat()
            time.sleep(POLL_SECONDS if self.run.local else 1.0)
        wanted = self._stop_wanted()
        return (False, f"asked to stop ({wanted})") if wanted else (True, decision.why)

    def _stop_wanted(self) -> str | None:
        if self.signals.stop:
            return self.signals.stop
        request = self.run.stop_requested()
        return str(request.get("reason", "stop")) if request else None

    def end(self, record: OutcomeRecord) -> OutcomeRecord:
        """Writes the run's outcome. A requested stop makes a resumable run of a preempted or failed attempt."""
        newest = newest_job(self.run)
        if newest is not None and newest.attempt > record.attempt:
            raise UserError(f"attempt {newest.attempt} has taken over, process {newest.pid} on {newest.host}")
        wanted = self._stop_wanted()
        if wanted and record.outcome != "completed" and not record.fatal:
            record = record.model_copy(update={"outcome": "stopped", "reason": wanted})
        self.run.clear_stop()
        self.run.write_outcome(record, of_run=True)
        if newest is not None:
            self._notifier(newest).ended(record)
        return record

    def _notifier(self, job: Job) -> Notifier:
        """One for all attempts that recipe the same: it knows what it could not send."""
        if self._notifies is None or self._notifies[0] != job.attempt:
            self._notifies = (job.attempt, notifier_of(self.run, _recipe_of(self.run, job)))
        return self._notifies[1]

    def _forget_last_end(self) -> None:
        """A resumed run has no outcome, and a stop asked of an earlier job does not concern this one."""
        request = self.run.stop_requested()
        if request is not None and float(request.get("time", 0.0)) < self.since:
            self.run.clear_stop()
        self.run.clear_outcome()


def serve(owner: Owner, *, where: str) -> int:
    """Own a run as the entrypoint of a scheduler's job: its exit code. `where`: for the log."""
    try:
        if not owner.wait_for_resources():
            log_line(f"{where}: asked to stop before it began")
            return EXIT_STOPPED
        job = owner.claim()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    log_line(f"{where}: process {os.getpid()} owns attempt {job.attempt}")
    try:
        return exit_code(owner.own(job))
    except UserError as error:  # another job has the run now
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Exception as error:
        record_own_failure(owner.run, job, error)
        return EXIT_FAILED


def max_failures(run: RunDir, job: Job) -> int:
    """resources.max_failures as this attempt means it; its default if the recipe cannot be read."""
    from launchyard.training.sections.resources import ResourcesConfig

    recipe = _recipe_of(run, job)
    return ResourcesConfig().max_failures if recipe is None else recipe.resources.max_failures


def _recipe_of(run: RunDir, job: Job) -> Recipe | None:
    """As this attempt means it; None if it cannot be read."""
    from launchyard.training.recipe import recipe_of

    try:
        return recipe_of(run, job)
    except (FileNotFoundError, ValueError):
        return None


def record_own_failure(run: RunDir, job: Job, error: Exception) -> None:
    """Records that the owner itself failed (a full disk, for example), if that is still possible."""
    message = f"the job itself failed: {type(error).__name__}: {error}"
    log_line(message if isinstance(error, StoreError) else "".join(traceback.format_exception(error)))
    record = OutcomeRecord(outcome="failed", reason="error", message=message, attempt=job.attempt, time=time.time())
    with contextlib.suppress(OSError), retry.retry_budget(min(FAREWELL_SECONDS, retry.current_retry_budget())):
        run.write_outcome(record, of_run=True)
        notifier_of(run, _recipe_of(run, job)).ended(record)
