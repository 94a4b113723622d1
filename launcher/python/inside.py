"""Owning a run from within another program: attempts in this very process, one worker, until the run ends.

The rules of an owner are those of launcher/agent/owner.py, except for failures: they are the caller's to handle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from launchyard.errors import LaunchError, UserError
from launchyard.host.environment import variable
from launchyard.host.packages import install_command
from launchyard.launcher.agent.conclusion import last_step
from launchyard.launcher.agent.node import adopt_retry_budget
from launchyard.launcher.agent.owner import FAREWELL_SECONDS, Owner
from launchyard.launcher.agent.signals import CANCELLED, Signals
from launchyard.launcher.backends.base import Planned, judge_job
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.python.watching import CancelledError, TrainingRequests, watched
from launchyard.run import layout
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.damage import JsonObject

if TYPE_CHECKING:
    from launchyard.training.distributed import World
    from launchyard.training.stop import StopFlag
    from launchyard.training.telemetry.instruments import OnStep
    from launchyard.training.worker import WorkerState

_at_work = threading.Lock()  # torch has one process group, one device and one set of threads


@dataclass
class Inside:
    """The owner of one run in this process. `start` claims its next attempt; `train` goes on until the run ends."""

    on_step: OnStep | None = None
    _owner: Owner | None = None
    _job: Job | None = None
    _threads: int | None = None
    _interrupted: BaseException | None = None
    _terminated: bool = False

    def start(self, run: RunDir, plan: Planned, overrides: JsonObject) -> Job:
        """Claims the next attempt of a run. UserError if the plan is not for one worker, or another has the run."""
        if plan.shape.world_size != 1:
            raise UserError(
                f"{plan.shape.world_size} workers are planned, and this process is one", hint="use launch for more"
            )
        cores = plan.environment.get("OMP_NUM_THREADS")
        self._threads = int(cores) if cores else None
        adopt_retry_budget(run)
        name = f"python {os.getpid()}"
        self._owner = Owner(
            run, FIRST, name, plan.shape, overrides, Signals(), self._run_nodes, judge_job, log=lambda text: None
        )
        self._job = self._owner.claim()
        return self._job

    @property
    def claimed(self) -> bool:
        return self._job is not None

    def train(self) -> OutcomeRecord:
        """Trains here; the outcome of the run. KeyboardInterrupt after a second Ctrl-C, LaunchError for other code than
        the run began with, else the error that ended training, once it is on record."""
        assert self._owner is not None and self._job is not None
        with with_threads(self._threads), own_random_numbers():
            record = self._owner.own(self._job)
        if self._terminated:  # saved; now to whoever else handles it, or the end of this process
            signal.raise_signal(signal.SIGTERM)
        if self._interrupted is not None:
            raise self._interrupted
        if record.outcome == "failed":
            raise LaunchError(record.message)
        return record

    def _run_nodes(self, job: Job, on_poll: Callable[[], None]) -> OutcomeRecord:
        from launchyard.training.stop import StopFlag
        from launchyard.training.worker import is_fatal

        assert self._owner is not None
        run = self._owner.run
        flag = StopFlag(None)
        requests = TrainingRequests(run, job.attempt, flag)
        try:
            with requests.signals(), watched(run, requests, on_poll):
                attempt(run, one_rank(job.attempt), flag, self._heard(requests))
        except (KeyboardInterrupt, CancelledError) as error:
            self._interrupted = error if isinstance(error, KeyboardInterrupt) else None
            return ended(run, job, "stopped", CANCELLED, "cancelled, nothing was saved")
        except Exception as error:
            record = ended(run, job, "failed", "error", f"{type(error).__name__}: {error}", fatal=is_fatal(error))
            with contextlib.suppress(OSError):
                self._owner.end(record)
            raise
        self._terminated = requests.terminated
        written = run.outcome(job.attempt)
        assert written is not None, "a worker that ends without an error has written it"
        return written

    def _heard(self, requests: TrainingRequests) -> OnStep:
        def heard(row: JsonObject) -> None:
            if self.on_step is not None:
                self.on_step(dict(row))
            requests.check()  # before the loop comes to the flag, at which it would save

        return heard


def attempt(run: RunDir, world: World, flag: StopFlag, on_step: OnStep | None) -> None:
    """One worker's part of an attempt, in this thread. An error is on record when it is raised, and nothing of the
    worker is left."""
    from launchyard.training.distributed import is_connected
    from launchyard.training.worker import Surroundings, WorkerState, keep_rows, record_error, work

    progress = WorkerState()
    connected = is_connected()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_log(run, world))
        stack.callback(progress.close)
        try:
            work(run, world, flag, progress, Surroundings(log, on_step, connected))
        except BaseException as error:
            with retry.retry_budget(FAREWELL_SECONDS):
                if isinstance(error, Exception) and not isinstance(error, CancelledError):
                    record_error(run, world, error, progress.state.step if progress.state else None)
                keep_rows(progress)
            if world.world_size == 1:  # else others would have to take part
                _let_go(progress, connected=connected)
            raise


def _let_go(progress: WorkerState, *, connected: bool) -> None:
    """Waits for a save that is under way, and leaves the process group if it was made for this attempt."""
    from launchyard.training.distributed import disconnect, is_connected

    if progress.checkpointer is not None:
        with contextlib.suppress(Exception):  # why the run ends is known already
            progress.checkpointer.wait(must_succeed=True)
    if is_connected() and not connected:
        disconnect()


def ended(run: RunDir, job: Job, outcome: str, reason: str, message: str, *, fatal: bool = False) -> OutcomeRecord:
    """Writes the outcome of an attempt whose worker could not."""
    record = OutcomeRecord.model_validate(
        {
            "outcome": outcome,
            "reason": reason,
            "message": message,
            "fatal": fatal,
            "attempt": job.attempt,
            "step": last_step(run, job.attempt),
            "time": time.time(),
        }
    )
    with retry.retry_budget(FAREWELL_SECONDS):
        run.write_outcome(record)
    return record


def one_rank(attempt: int) -> World:
    """The world of a worker that is alone."""
    from launchyard.training.distributed import World

    return World(0, 0, 1, 0, attempt=attempt, scratch=None, job_end=None, host=socket.gethostname())


@contextlib.contextmanager
def _log(run: RunDir, world: World) -> Iterator[IO[str] | None]:
    """The worker's log; of a run in a store there is none, its events are there anyway."""
    if not run.local:
        yield None
        return
    path = run.path(layout.logs_folder(world.attempt), layout.rank_log(world.rank))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", buffering=1) as file:
        yield file


# -- the process ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def alone_here() -> Iterator[None]:
    """UserError if this process cannot be the one worker of a run: it trains already, or is one rank of several."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UserError("torch is not installed here, and training needs it", hint=install_command("train"))
    if int(variable("WORLD_SIZE") or 1) > 1:
        raise UserError("this process is one of several ranks already (WORLD_SIZE)", hint="use launch for more workers")
    if not _at_work.acquire(blocking=False):
        raise UserError("a run trains in this process already", hint="use launch for runs beside each other")
    budget = retry.current_retry_budget()
    try:
        yield
    finally:
        retry.set_retry_budget(budget)
        _at_work.release()


@contextlib.contextmanager
def with_threads(count: int | None) -> Iterator[None]:
    """As many threads for products as the plan has: sums of other numbers of threads differ in their last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_random_numbers() -> AbstractContextManager[None]:
    """Inside, torch's random numbers are the run's; afterwards they go on as if nothing had been drawn."""
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    forked: AbstractContextManager[None] = torch.random.fork_rng(devices)
    return forked
