"""Which runs exist, and in which state each is. Reads run directories and a small registry; starts and stops nothing.

The registry is one file a run in the user's state folder: id, name and URL. All else is in the run directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.claims import LEASE_SECONDS, heartbeat_age, last_heartbeat, newest_job, owner_alive
from launcher.errors import UserError, user_errors
from model import files
from training.rundir import RAY_STOP, SCANCEL, Job, OutcomeRecord, RunDir, parse_jsonl

if TYPE_CHECKING:
    from launcher.backends.in_queue import Queued
    from training.config import Recipe, Workload

State = Literal["pending", "starting", "running", "saving", "stopped", "completed", "failed", "lost", "unreachable"]
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # letters and digits that nobody mixes up
_TAIL_BYTES = 64 * 1024
SETTLED_SECONDS = 60.0  # after its last word nothing of a run lives, and no scheduler has to be asked
_SCHEDULERS = {"slurm": "SLURM", "ray": "Ray"}
GLANCE_SECONDS = 3.0  # how long one run among many may keep all others waiting when its store does not answer


# -- registry --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Registered:
    """One entry of the registry. `created` in seconds since the epoch; `store`: the cluster's StoreOptions."""

    run_id: str
    name: str
    url: str
    created: float
    store: dict[str, Any] = field(default_factory=dict)

    def open(self) -> RunDir:
        """Its directory; from now on this process reaches stores as the run's cluster said."""
        files.set_store_options(files.StoreOptions.model_validate(self.store))
        return RunDir(self.url)

    def is_there(self) -> bool:
        """Has it its plan, or can that not be told now?"""
        run = self.open()
        try:
            with files.patience(GLANCE_SECONDS):
                return self.is_of(run)
        except (OSError, ValueError):
            return True

    def is_of(self, run: RunDir) -> bool:
        """Is this run what lies there now? Another one may have taken the place of one that was removed."""
        return run.exists("plan.json") and RunFacts(run).plan.get("run_id", self.run_id) == self.run_id


def new_run_id(name: str) -> str:
    """`name` and four characters more, free in the registry."""
    taken = {path.stem for path in _folder().glob("*.json")}
    while True:
        run_id = f"{name}-{''.join(secrets.choice(_ALPHABET) for _ in range(4))}"
        if run_id not in taken:
            return run_id


def register(run_id: str, name: str, url: str, *, store: files.StoreOptions | None = None) -> None:
    """Remember a run, and how its store is reached; for its user only: a URL may tell more than others need to know."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = (store or files.StoreOptions()).model_dump(exclude_none=True)
    entry = Registered(run_id, name, RunDir(url).url, time.time(), options)
    temporary = folder / f".{run_id}.{secrets.token_hex(4)}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(entry), file)
    os.replace(temporary, folder / f"{run_id}.json")


def known_ids() -> list[str]:
    """Ids of all registered runs, oldest first."""
    return [entry.run_id for entry in registered()]


def registered() -> list[Registered]:
    """All runs that were launched from this account, oldest first, without a look at any of them."""
    found = []
    for path in _folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Registered(**json.loads(path.read_text())))
    return sorted(found, key=lambda entry: (entry.created, entry.run_id))


def _folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("launchyard")) / "runs"


# -- finding ---------------------------------------------------------------------------------------------------------
def find(run: str) -> RunDir:
    """A run by id, the beginning or the end of its id, its name (the newest of that name), `latest`, path or URL.

    UserError if there is none, or more than one.
    """
    with user_errors():
        return _find(run)


def _find(run: str) -> RunDir:
    if "://" in run or os.sep in run or run in (".", ".."):
        return _at(run)
    entries = registered()
    if run in ("latest", "last"):
        return _there(_newest(entries, "no run has been launched from this account yet"))
    for matches in _matches(run, entries):
        if len(matches) > 1:
            listed = ", ".join(entry.run_id for entry in matches)
            raise UserError(f"{run}: fits more than one run: {listed}", hint="write a little more of its id")
        if matches:
            return _there(matches[0])
    if os.path.isdir(run):
        return _at(run)
    raise UserError(f"{run}: no such run{_near(run, entries)}", hint="launch status shows all; a path or URL works too")


def _matches(run: str, entries: list[Registered]) -> Iterator[list[Registered]]:
    """Entries that fit, the strictest way first."""
    yield [entry for entry in entries if entry.run_id == run]
    named = [entry for entry in entries if entry.name == run]
    yield next(([entry] for entry in reversed(named) if entry.is_there()), named[-1:])
    yield [entry for entry in entries if entry.run_id.startswith(run)]
    yield [entry for entry in entries if entry.run_id.rsplit("-", 1)[-1] == run]
    yield [entry for entry in entries if entry.run_id.rsplit("-", 1)[-1].endswith(run)]


def _newest(entries: list[Registered], otherwise: str) -> Registered:
    there = next((entry for entry in reversed(entries) if entry.is_there()), None)
    if there is None:
        raise UserError(otherwise, hint="launch --local starts one")
    return there


def _at(url: str) -> RunDir:
    run = RunDir(url if "://" in url else os.path.expanduser(url))
    known = next((entry for entry in registered() if entry.url == run.url), None)
    if known is not None:
        known.open()
    if not run.exists("plan.json"):
        raise UserError(f"{url}: no run there (it has no plan.json)")
    return run


def _there(entry: Registered) -> RunDir:
    run = entry.open()
    if not entry.is_of(run):
        raise UserError(f"{entry.run_id}: its run directory {entry.url} is gone")
    return run


def _near(run: str, entries: list[Registered]) -> str:
    from launcher.explain import nearest

    names = list(dict.fromkeys([*(entry.run_id for entry in entries), *(entry.name for entry in entries)]))
    near = nearest(run, names, cutoff=0.5)
    if near:
        return f"; did you mean {near}?"
    return f"; the newest are {', '.join(entry.run_id for entry in entries[-3:])}" if entries else ""


def of_cluster(name: str, *, newest: int = 10) -> Iterator[RunDir]:
    """The newest registered runs of a place whose directories are local, newest first."""
    for entry in reversed(registered()):
        if newest and not files.is_remote(entry.url) and RunFacts(RunDir(entry.url)).plan.get("cluster") == name:
            newest -= 1
            yield RunDir(entry.url)


# -- what a run is ---------------------------------------------------------------------------------------------------
class RunFacts:
    """What is frozen in a run directory, read when asked for, and what its newest attempt makes of it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    @cached_property
    def plan(self) -> dict[str, Any]:
        try:
            return dict(self.run.read_json("plan.json"))
        except (FileNotFoundError, ValueError):
            return {}

    @property
    def run_id(self) -> str:
        return str(self.plan.get("run_id") or self.run.url.rsplit("/", 1)[-1])

    @property
    def name(self) -> str:
        return str(self.plan.get("name", ""))

    def overrides(self) -> dict[str, Any]:
        """Those of the newest attempt; all that were ever given to the run."""
        attempts = self.run.attempts()
        return dict(self.run.job(attempts[-1]).overrides) if attempts else {}

    def max_steps(self) -> int | None:
        """Steps of the whole run as its newest attempt means it; None if that cannot be told."""
        if not self.overrides():
            planned = self.plan.get("max_steps")
            return int(planned) if planned is not None else None
        from training.config import count_steps

        try:
            recipe, workload = effective(self.run, self.overrides())
        except (FileNotFoundError, ValueError):
            return None
        return count_steps(recipe, workload.data.n_tokens)


def effective(run: RunDir, overrides: dict[str, Any]) -> tuple[Recipe, Workload]:
    """The recipe of an attempt, and the frozen part of the plan. FileNotFoundError or ValueError without them."""
    import yaml

    from training.config import Recipe, Workload, apply_overrides

    raw = yaml.safe_load(run.read_text("recipe.yaml"))
    recipe = Recipe.model_validate(apply_overrides(raw, overrides))
    return recipe, Workload.model_validate(run.read_json("plan.json"))


# -- state -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RunState:
    """A run at this moment. Seconds since the epoch in `since`; loss in nats a token."""

    run_id: str
    name: str
    url: str
    state: State
    resumable: bool
    alive: bool
    attempt: int | None = None
    host: str | None = None
    pid: int | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    checkpoint: int | None = None
    since: float | None = None
    reason: str | None = None
    message: str = ""
    job_id: str | None = None
    queue: str | None = None  # why it waits, or what its scheduler says
    start: float | None = None  # when it is expected to start

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def overview() -> list[RunState]:
    """The states of all registered runs whose directory is there, oldest first.

    One whose store does not answer is `unreachable`, and others of that store are not asked any more.
    """
    states, silent = list[RunState | None](), dict[tuple[str, str], str]()
    for entry in registered():
        store = (entry.url.partition("://")[0], repr(entry.store))
        if store in silent:
            states.append(_unreachable(entry, silent[store]))
            continue
        try:
            states.append(_glance(entry))
        except (OSError, ValueError) as error:
            states.append(_unreachable(entry, str(error)))
            if files.is_remote(entry.url) and not isinstance(error, PermissionError):
                silent[store] = str(error)
    return [state for state in states if state is not None]


def _glance(entry: Registered) -> RunState | None:
    """The state of one run among many, asked for with little patience; None if it is gone."""
    run = entry.open()
    with files.patience(GLANCE_SECONDS):
        return state_of(run) if entry.is_of(run) else None


def _unreachable(entry: Registered, message: str) -> RunState:
    return RunState(entry.run_id, entry.name, entry.url, "unreachable", resumable=False, alive=False, message=message)


def state_of(run: RunDir) -> RunState:
    """The state of a run. Costs a few small reads, however long the run is."""
    facts = RunFacts(run)
    common: dict[str, Any] = {"run_id": facts.run_id, "name": facts.name, "url": run.url}
    attempts = run.attempts()
    checkpoint = newest_checkpoint(run)
    job = newest_job(run)
    if job is None:
        return RunState(**common, state="pending", resumable=True, alive=False, checkpoint=checkpoint)
    seen = _look(run, job)
    alive = _is_alive(run, job, seen)
    ended = _ended(run, job, alive) or _cancelled(job, seen, checkpoint)
    events = run.events(job.attempt)
    state = _state(alive, ended, [str(event.get("event")) for event in events])
    if seen is not None and ended is None:
        waits = seen.state == "queued"
        said = seen.reason
        if seen.state == "gone" and seen.word:
            said = f"{_SCHEDULERS[job.backend]} has ended it: {seen.word}"
        common |= {"job_id": job.job_id, "queue": said or None, "start": seen.start if waits else None}
        state = "pending" if waits else state
    row = last_row(run, attempts) or {}
    step = _step(row, job.attempt, ended, events, checkpoint)
    common |= {"alive": alive, "attempt": job.attempt, "host": job.host, "pid": job.pid, "checkpoint": checkpoint}
    common |= {"reason": ended.reason if ended else None, "message": ended.message if ended else ""}
    max_steps = facts.max_steps()
    return RunState(
        **common,
        state=state,
        resumable=not alive and state != "completed",
        step=step,
        max_steps=max_steps,
        loss=row.get("loss"),
        tokens_per_second=row.get("tokens_per_second"),
        eta_seconds=_eta(row, step, max_steps) if alive else None,
        since=_since(run, job, alive, ended, state),
    )


def _look(run: RunDir, job: Job) -> Queued | None:
    """The job as its scheduler sees it; None where there is none to ask."""
    from launcher.backends import load_backend
    from launcher.backends.in_queue import Queued

    if job.backend == "local":
        return None
    record = run.outcome()
    if record is not None and record.attempt >= job.attempt and time.time() - record.time > SETTLED_SECONDS:
        return Queued("gone")
    return load_backend(job.backend).look(run, job)


def _is_alive(run: RunDir, job: Job, seen: Queued | None) -> bool:
    if seen is None:
        return owner_alive(run, job)
    if seen.state == "unknown":  # not asked a second time: each costs seconds
        return run.outcome() is None and heartbeat_age(run, job.attempt) < LEASE_SECONDS
    return seen.state != "gone"


def _cancelled(job: Job, seen: Queued | None, checkpoint: int | None) -> OutcomeRecord | None:
    """The scheduler's own command left its owner no time for a word, or came before there was one."""
    if seen is None or seen.state != "gone" or not seen.word.startswith(("CANCELLED", "STOPPED")):
        return None
    reason, message = (RAY_STOP if job.backend == "ray" else SCANCEL), f"job {job.job_id} was cancelled"
    return OutcomeRecord(
        outcome="stopped", reason=reason, message=message, attempt=job.attempt, step=checkpoint, time=time.time()
    )


def _ended(run: RunDir, job: Job, alive: bool) -> OutcomeRecord | None:
    """How the run ended; None while it goes on, or when its owner is gone without a last word."""
    record = run.outcome()
    if record is not None and record.attempt >= job.attempt:
        return record
    if alive:
        return None
    record = run.outcome(job.attempt)  # the owner died between the attempt's word and the run's
    if record is None or (record.outcome == "stopped" and record.reason in ("preempted", "time limit")):
        return None
    return record


def _state(alive: bool, ended: OutcomeRecord | None, events: list[str]) -> State:
    if ended is not None:
        return ended.outcome
    if not alive:
        return "lost"
    if "stopping" in events or "finished" in events:
        return "saving"
    return "running" if "started" in events else "starting"


def _step(
    row: dict[str, Any],
    attempt: int,
    ended: OutcomeRecord | None,
    events: list[dict[str, Any]],
    checkpoint: int | None,
) -> int | None:
    """Finished steps: of the newest row, unless a newer attempt has gone on from before it."""
    if ended is not None and ended.outcome != "failed" and ended.step is not None:
        return ended.step
    started = next((int(event["step"]) for event in events if event.get("event") == "started"), None)
    if row and (started is None or int(row.get("attempt", -1)) == attempt):
        return int(row["step"])
    return started if started is not None else checkpoint


def _eta(row: dict[str, Any], step: int | None, max_steps: int | None) -> float | None:
    if step is None or max_steps is None or not row.get("step_seconds"):
        return None
    return max(0.0, (max_steps - step) * float(row["step_seconds"]))


def _since(run: RunDir, job: Job, alive: bool, ended: OutcomeRecord | None, state: State) -> float | None:
    if ended is not None:
        return ended.time
    return job.created if alive or state != "lost" else last_heartbeat(run, job.attempt) or job.created


def newest_checkpoint(run: RunDir) -> int | None:
    """Step of the newest committed checkpoint."""
    return next(reversed(run.committed_steps()), None)


def last_row(run: RunDir, attempts: list[int]) -> dict[str, Any] | None:
    """The newest row of the newest attempt that wrote one, without reading the whole history."""
    names = [name for name in run.listdir("metrics") if name.startswith("steps-")]
    for attempt in reversed(attempts):
        for name in reversed([name for name in names if name.startswith(f"steps-{attempt:04d}")]):
            rows = parse_jsonl(b"\n" + _tail(run, f"metrics/{name}").partition(b"\n")[2])
            if rows:
                return rows[-1]
    return None


def _tail(run: RunDir, name: str) -> bytes:
    """The end of a file, with a line feed before the first whole line."""
    if not run.local:
        return b"\n" + run.read_bytes(name)
    with open(run.path(name), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return (b"\n" if size <= _TAIL_BYTES else b"") + file.read()
