"""Plays a case: starts the run in the ways that there are, kills it at the instants of its plan, looks at what is left.

Everything it starts carries the run's mark or is its child, and is ended with the case.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from launchyard.host.environment import MARK_ATTEMPT, MARK_RUN
from launchyard.host.ports import free_port
from launchyard.host.processes import descendants, end_all, end_marked, marked, wait_until, worker_rank
from launchyard.run.records import Job as Claim
from launchyard.run.rundir import RunDir
from tests.chaos.beacons import VARIABLE, Beacons
from tests.chaos.instants import beacon_of, hook_of
from tests.chaos.plan import MOST_COMMITS, Case, Job, Kill
from tests.chaos.runs import RETRY_SECONDS, References, write_cluster, write_data, write_run
from tests.chaos.troubles import Bringer
from tests.chaos.witness import Witness
from tests.support.faultproxy import FaultProxy
from tests.support.store import Bucket

JOB_SECONDS = RETRY_SECONDS + 90.0
GONE_SECONDS = 15.0  # from the death of an agent until nothing of it can be seen on a busy machine
DYING_SECONDS = 3.0  # in which its workers may still do something
ZOMBIE_SECONDS = 60.0  # from waking up to finding out that somebody else has the run
QUIET_JOBS = 3  # in which a run that is left in peace must complete
WORKER = "tests.chaos.worker"


@dataclass
class Tally:
    """What was really done, by kind."""

    faults: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)  # that store faults have hit
    victims: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    attempts: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


@dataclass(eq=False)
class Started:
    """A job under way. `process`: agent, owner or launcher; `workers` where nobody is above them."""

    job: Job
    first: int  # its first attempt
    process: subprocess.Popen[bytes] | None
    workers: list[subprocess.Popen[bytes]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    fired: int = 0  # kills that have struck
    struck: set[int] = field(default_factory=set)  # attempts that lost somebody
    over: bool = False
    wake: threading.Event = field(default_factory=threading.Event)
    headless: dict[int, float] = field(default_factory=dict)  # attempts that lost their agent, and when
    frozen: bool = False
    woken: float = 0.0


class Harness:
    """One case in a folder of its own; a context manager that leaves nothing behind."""

    def __init__(self, case: Case, folder: Path, bucket: Bucket, references: References) -> None:
        self.case, self.folder, self.bucket, self.tally = case, folder, bucket, Tally()
        self._began = time.monotonic()
        self._rng = random.Random(f"play {case.seed}")
        data = write_data(f"{bucket.url}/data", case.method)
        place = f"{bucket.url}/run" if case.place == "s3" else str(folder / "run")
        self.run: RunDir = write_run(place, data, case.size, case.method)
        nproc = 1 if case.resized else case.jobs[0].nproc
        self.witness = Witness(self.run, references.get(case.size, case.method, nproc))
        self._stack = contextlib.ExitStack()
        self._zombie: Started | None = None  # frozen, and taken for dead

    def __enter__(self) -> Harness:
        self._stack.callback(self._end_everything)
        self._proxy = self._stack.enter_context(FaultProxy(self.bucket.server.port))
        self._beacons = self._stack.enter_context(Beacons(self.folder))
        self._bringer = Bringer(self._proxy, self.bucket, self.case.place == "s3")
        there = self.bucket.through(self._proxy.endpoint)
        homes = {f"XDG_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG")}
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        self._env = {**os.environ, **there.environment, **homes, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
        self._env[VARIABLE] = self._beacons.path
        self._env["PYTHONPATH"] = (
            os.getcwd()
        )  # where tests.chaos.worker lies: no process of a run looks there by itself
        write_cluster(self.folder / "config/launchyard/clusters")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _end_everything(self) -> None:
        end_all(self._owners())
        for url in (self.run.url, self._mark_of_frozen()):
            end_marked(url)

    # -- the whole ---------------------------------------------------------------------------------------------------
    def play(self) -> None:
        """All jobs of the plan, and then in peace, until the run has completed."""
        quiet = [Job("agent", self.case.jobs[-1].nproc, (), ()) for _ in range(QUIET_JOBS)]
        for job in (*self.case.jobs, *quiet):
            if self.is_completed():
                break
            self._play_job(job)
        if self._zombie is not None:
            self._end_zombie(self._zombie)
        assert self.is_completed(), "a run that was left in peace did not complete"
        self.witness.look()
        self.witness.conclude(exact=not self.case.resized)
        self.witness.look_for_remains(self.bucket)

    def is_completed(self) -> bool:
        attempts = self.run.attempts()
        outcome = self.run.outcome(attempts[-1]) if attempts else None
        return outcome is not None and outcome.outcome == "completed"

    def _play_job(self, job: Job) -> None:
        before = max(self.witness.whole, default=0)
        zombie = self._zombie
        started = self._start(job)
        self.tally.ways[job.way] += 1
        self._await(started)
        with started.lock:
            started.over = True
        for fault, requests in self._bringer.disarm():
            self.tally.faults[fault] += 1
            self.tally.requests[fault] += requests
        self._beacons.clear()
        self._settle()
        if started.frozen:
            self._stack.callback(self._end_workers, started)
        else:
            assert wait_until(lambda: not marked(self.run.url), seconds=GONE_SECONDS), self._still_there()
        if zombie is not None:
            self.witness.look()
            self._end_zombie(zombie)
        self._zombie = started if started.frozen else None
        attempts = [number for number in self.run.attempts() if number >= started.first]
        self.tally.attempts += len(attempts)
        self.witness.look()
        if zombie is None and attempts:
            self.witness.look_at_start(attempts[0], before)
        self._look_at_failures(started, attempts)
        self._note(f"job {job}: attempts {attempts}, whole {sorted(self.witness.whole)}")

    def _note(self, text: str) -> None:
        with open(self.folder / "output.log", "a") as log:
            log.write(f"=== {time.monotonic() - self._began:6.1f} s: {text}\n")

    def _settle(self) -> None:
        """Until requests of those who were killed have come to their end."""
        wait_until(lambda: not self._proxy.connections, seconds=1.0 if self._zombie else 10.0)

    def _look_at_failures(self, started: Started, attempts: list[int]) -> None:
        """Whoever lost nobody must not have failed: the store's faults pass. Whoever lost its agent did no more."""
        for number, struck in started.headless.items():
            late = [event for event in self.run.events(number) if event["time"] > struck + DYING_SECONDS]
            assert not late, f"attempt {number} went on without its agent: {late}"
        for number in attempts:
            if number in started.struck or started.frozen:
                continue
            errors = [error["traceback"] for error in self.run.errors(number)]
            outcome = self.run.outcome(number)
            said = f"attempt {number} lost nobody and failed: {outcome}\n" + "\n".join(errors)
            assert not errors and outcome is not None and outcome.outcome == "completed", said
            failed = [event for event in self.run.events(number) if event["event"] == "save failed"]
            assert not failed, f"attempt {number} lost nobody and could not save: {failed}"

    # -- starting ----------------------------------------------------------------------------------------------------
    def _start(self, job: Job) -> Started:
        started = Started(job, len(self.run.attempts()), None, [])
        for trouble in job.troubles:
            self._bringer.arm(trouble, self._rng)
        self._arm(started, list(job.kills), started.first)
        if self._zombie is not None:
            self._arm_wake(self._zombie)
        start: dict[str, Callable[[Started], None]] = {
            "workers": self._start_workers, "agent": self._start_agent, "owner": self._start_owner,
            "launch": self._launch,
        }  # fmt: skip
        start[job.way](started)
        return started

    def _claim(self, attempt: int, nproc: int) -> None:
        """As somebody who is dead by now: whoever comes next need not wait for a heartbeat to expire."""
        self.run.claim_attempt(
            Claim(
                attempt=attempt, backend="local", job_id="chaos", host=socket.gethostname(), pid=0, pid_started=0.0,
                created=time.time(), nnodes=1, nproc_per_node=nproc, device="cpu",
            )
        )  # fmt: skip

    def _start_workers(self, started: Started) -> None:
        """Worker processes without anybody above them."""
        nproc, attempt = started.job.nproc, started.first
        self._claim(attempt, nproc)
        freezes = any(kill.victim == "frozen" for kill in started.job.kills)
        env = {
            **self._env,
            "WORLD_SIZE": str(nproc),
            "LOCAL_WORLD_SIZE": str(nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            MARK_RUN: self._mark_of_frozen() if freezes else self.run.url,
            MARK_ATTEMPT: str(attempt),
        }
        if freezes:  # as on another machine, whose cache nobody here waits for
            env["XDG_CACHE_HOME"] = str(self.folder / f"cache-{attempt}")
        with started.lock:
            for rank in range(nproc):
                around = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.workers.append(self._popen(["-m", WORKER, self.run.url], around))

    def _start_agent(self, started: Started) -> None:
        self._claim(started.first, started.job.nproc)
        argv = ["-m", "launchyard.launcher.agent.node", self.run.url, f"--attempt={started.first}", "--device=cpu"]
        argv += [f"--nproc-per-node={started.job.nproc}", f"--worker-module={WORKER}"]
        started.process = self._popen(argv, self._env)

    def _start_owner(self, started: Started) -> None:
        """The very process that `launch` would detach, with our worker."""
        argv = ["-m", "launchyard.launcher.backends.local.owner", self.run.url, "--nnodes=1", "--device=cpu"]
        argv.append(f"--nproc-per-node={started.job.nproc}")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            started.process = self._popen(argv, self._env, stdin=theirs.fileno())
            ours.sendall(json.dumps({"overrides": {}, "worker_module": WORKER}).encode())

    def _launch(self, started: Started) -> None:
        """`launch resume`, which starts an owner and leaves."""
        argv = ["-m", "launchyard", "resume", self.run.url, "--detach"]
        started.process = self._popen([*argv, f"resources.nproc_per_node={started.job.nproc}"], self._env)

    def _popen(self, argv: list[str], env: dict[str, str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        with open(self.folder / "output.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, *argv], env=env, stdin=stdin, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    # -- killing -----------------------------------------------------------------------------------------------------
    def _arm(self, started: Started, kills: list[Kill], attempt: int) -> None:
        """Wait for the first of these kills; the others follow in later attempts of the same owner."""
        if not kills:
            return
        kill, rest, number = kills[0], kills[1:], len(started.job.kills) - len(kills)

        def strike(instant: str, seen: Any) -> None:
            struck = self._strike(started, number, replace(kill, instant=instant), getattr(seen, "pid", None))
            if struck and rest:
                follow = len(self.run.attempts())
                self._beacons.on(lambda beacon: beacon.attempt >= follow, lambda _: self._arm(started, rest, follow))

        if kill.instant != "random" and (self.case.place == "s3" or started.job.way != "launch"):
            self._watch(started, replace(kill, instant="committed", after=MOST_COMMITS), attempt, strike)
        self._watch(started, kill, attempt, strike)

    def _watch(self, started: Started, kill: Kill, attempt: int, strike: Callable[[str, Any], None]) -> None:
        """Strike when the instant comes: at a request, at a beacon, or else after a while."""
        hook = hook_of(kill.instant, self.case.place)
        if hook is not None:
            self._proxy.on(hook.match, hook.when, partial(strike, kill.instant), skip=kill.after)
        elif kill.instant == "random" or started.job.way == "launch":  # the plain worker tells nothing
            timer = threading.Timer(0.5 + kill.after % 1000 / 100, strike, ("random", None))
            timer.daemon = True
            timer.start()
        else:
            matches, factor = beacon_of(kill.instant, attempt)
            self._beacons.on(matches, partial(strike, kill.instant), skip=kill.after * factor)

    def _strike(self, started: Started, number: int, kill: Kill, pid: int | None) -> bool:
        """SIGKILL, or for a frozen job SIGSTOP, to the victims, once. Runs while the instant lasts."""
        with started.lock:
            if started.over or number != started.fired:
                return False
            victims = self._victims(started, kill, pid)
            newest = max(len(self.run.attempts()) - 1, started.first)
            struck = 0
            for victim in victims:
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    victim.send_signal(signal.SIGSTOP if kill.victim == "frozen" else signal.SIGKILL)
                    struck += 1
            if not struck:
                return False
            started.fired += 1
            started.struck.add(newest)
            started.frozen = started.frozen or kill.victim == "frozen"
            self._note(f"{kill} struck {struck} in attempt {newest}")
            self.tally.faults[f"kill: {kill.instant}"] += 1
            self.tally.victims[kill.victim] += 1
            if kill.victim in ("agent", "tree"):
                started.headless[newest] = time.time()
        if kill.victim == "frozen":
            started.wake.wait(JOB_SECONDS)  # what was on its way arrives when all thought it dead
        return True

    def _victims(self, started: Started, kill: Kill, pid: int | None) -> list[psutil.Process]:
        if started.workers:
            return [psutil.Process(worker.pid) for worker in started.workers if worker.poll() is None]
        everybody = marked(self.run.url)
        workers = [process for process in everybody if worker_rank(process) is not None]
        if kill.victim == "worker":
            told = [process for process in workers if process.pid == pid]
            return told or self._rng.sample(workers, min(1, len(workers)))
        if kill.victim == "workers":
            return workers
        above = self._owners()
        if started.process is not None and started.process.poll() is None:
            above.append(psutil.Process(started.process.pid))
        if kill.victim == "agent":
            return above
        return [*{one.pid: one for top in above for one in descendants(top.pid)}.values(), *everybody]

    def _owners(self) -> list[psutil.Process]:
        """Owners of this run that `launch` has detached."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if self.run.url in words and "launchyard.launcher.backends.local.owner" in words:
                    found.append(process)
        return found

    # -- waiting -----------------------------------------------------------------------------------------------------
    def _await(self, started: Started) -> None:
        """Until a job has ended, or is frozen."""
        end = time.monotonic() + JOB_SECONDS
        while not (started.frozen or self._has_ended(started)):
            assert time.monotonic() < end, f"{started.job} does not end\n{self._still_there()}"
            time.sleep(0.05)

    def _has_ended(self, started: Started) -> bool:
        if started.workers:
            return all(worker.poll() is not None for worker in started.workers)
        assert started.process is not None
        return started.process.poll() is not None and (started.job.way != "launch" or not self._owners())

    def _still_there(self) -> str:
        left = [(process.pid, process.cmdline()) for process in marked(self.run.url)]
        log = (self.folder / "output.log").read_text(errors="replace")[-4000:]
        return f"processes that are there: {left}\n{log}"

    # -- those who were taken for dead -------------------------------------------------------------------------------
    def _mark_of_frozen(self) -> str:
        return f"frozen {self.run.url}"

    def _arm_wake(self, zombie: Started) -> None:
        """It wakes up when the attempt after it has committed something, or has ended."""

        def wake(_: Any) -> None:
            self._wake(zombie)

        hook = hook_of("committed", self.case.place)
        if hook is not None:
            self._proxy.on(hook.match, hook.when, wake, skip=self._rng.randint(0, 2))
        else:
            matches, _ = beacon_of("committed", zombie.first + 1)
            self._beacons.on(matches, wake, skip=self._rng.randint(0, 2))

    def _wake(self, zombie: Started) -> None:
        zombie.woken = zombie.woken or time.time()
        for worker in zombie.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGCONT)
        zombie.wake.set()

    def _end_zombie(self, zombie: Started) -> None:
        """It must find out by itself that its run is somebody else's."""
        taken_over = len(self.run.attempts()) > zombie.first + 1
        self._wake(zombie)
        ended = wait_until(lambda: all(one.poll() is not None for one in zombie.workers), seconds=ZOMBIE_SECONDS)
        self._end_workers(zombie)
        assert ended, f"attempt {zombie.first} trains on although another has taken over"
        saved = [event for event in self.run.events(zombie.first) if event["event"] == "saved"]
        late = [event["step"] for event in saved if event["time"] > zombie.woken]
        assert len(late) <= 1 or not taken_over, f"attempt {zombie.first} was taken over, and saved steps {late}"

    @staticmethod
    def _end_workers(zombie: Started) -> None:
        zombie.wake.set()
        end_all([psutil.Process(one.pid) for one in zombie.workers if one.poll() is None])
        for worker in zombie.workers:
            worker.wait(GONE_SECONDS)
