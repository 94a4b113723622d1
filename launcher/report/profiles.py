"""The traces of a run: what there is, and how more are asked for while it runs. Opens none of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote

from launchyard.errors import UserError
from launchyard.launcher.format import size
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows
from launchyard.storage import files
from launchyard.storage.damage import JsonObject
from launchyard.training.profile.tables import phase_rows, spent_rows
from launchyard.training.sections.metrics import ProfileConfig

AHEAD_SECONDS = {True: 3.0, False: 20.0}  # local run directory, remote one: until a request has reached all workers
MOST_SHOWN = 8  # on a page, in full
MOST_LISTED = 100
POLL_SECONDS = {True: 0.3, False: 3.0}


@dataclass(frozen=True)
class Profile:
    """Steps `first` to `last` of one rank. summary: phases, operators and modules; see training/profile/digest.py."""

    first: int
    last: int
    rank: int
    attempt: int
    trace: str  # names in the run directory
    table: str
    snapshot: str | None
    bytes: int
    summary: JsonObject

    @property
    def steps(self) -> str:
        return f"{self.first}-{self.last}" if self.last > self.first else str(self.first)

    def to_json(self, run: RunDir) -> JsonObject:
        """With paths or URLs in place of names."""
        placed = {key: run.path(name) for key, name in self._names().items()}
        return {**asdict(self), **placed}

    def names(self) -> list[str]:
        return [*self._names().values(), self.trace.removesuffix(layout.TRACE) + layout.TRACE_SUMMARY]

    def _names(self) -> dict[str, str]:
        found = {"trace": self.trace, "table": self.table, "snapshot": self.snapshot}
        return {key: name for key, name in found.items() if name is not None}

    def tables(self) -> Iterator[tuple[str, tuple[list[str], list[list[str]]]]]:
        """Titles, each with the head and the rows of its table."""
        yield "Phases", phase_rows(self.summary)
        yield "Operators", spent_rows(self.summary, "operators")
        if self.summary["modules"]:
            yield "Modules", spent_rows(self.summary, "modules")


def list_profiles(run: RunDir) -> list[Profile]:
    """All that are complete, by step and rank."""
    names = run.listdir(layout.PROFILES)
    origins = sorted(origin for name in names if (origin := layout.trace_origin(name)) is not None)
    found = [_read(run, layout.profile(step, rank), names) for step, rank in origins]
    return [one for one in found if one is not None]


def _read(run: RunDir, stem: str, names: Sequence[str]) -> Profile | None:
    """None without its summary, or if that is damaged: that is reported."""
    summary = run.find_json(stem + layout.TRACE_SUMMARY)
    if summary is None or not all(key in summary for key in ("first", "last", "rank", "operators", "modules")):
        return None
    snapshot = stem + layout.MEMORY_SNAPSHOT
    return Profile(
        first=int(summary["first"]),
        last=int(summary["last"]),
        rank=int(summary["rank"]),
        attempt=int(summary.get("attempt", 0)),
        trace=stem + layout.TRACE,
        table=stem + layout.TRACE_TABLE,
        snapshot=snapshot if os.path.basename(snapshot) in names else None,
        bytes=files.size(run.path(stem + layout.TRACE)),
        summary=summary,
    )


def fetch_profiles(run: RunDir, profiles: Sequence[Profile], folder: str) -> list[str]:
    """Copy all files of these traces into a folder here; their paths."""
    os.makedirs(folder, exist_ok=True)
    copied = []
    for name in (name for profile in profiles for name in profile.names()):
        path = os.path.join(folder, os.path.basename(name))
        raw = run.read_bytes(name)
        with open(path, "wb") as file:
            file.write(raw)
        copied.append(path)
    return copied


# -- on a page -------------------------------------------------------------------------------------------------------
def page_profiles(run: RunDir) -> JsonObject | None:
    """All traces, and what is in the first ones of each window; None if there is none."""
    found = list_profiles(run)
    if not found:
        return None
    lowest = {one.first: one for one in reversed(found)}
    shown = [lowest[first] for first in sorted(lowest)][:MOST_SHOWN]
    return {
        "listed": [_listed(run, one) for one in found[:MOST_LISTED]],
        "shown": [(f"Steps {one.steps} of rank {one.rank}", [table for _, table in one.tables()]) for one in shown],
    }


def _listed(run: RunDir, one: Profile) -> dict[str, str]:
    place = run.path(one.trace)
    return {
        "steps": one.steps,
        "rank": str(one.rank),
        "attempt": str(one.attempt),
        "size": size(one.bytes),
        "place": place,
        "link": f"file://{quote(place)}" if run.local else "",
    }


# -- asking ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """A request that a run was given. `config`: a single window."""

    config: ProfileConfig
    job: Job
    before: frozenset[tuple[int, int]]  # traces that were there: first step and rank

    @property
    def steps(self) -> tuple[int, int]:
        return self.config.windows[0]


def next_steps(run: RunDir, state: RunState, n_steps: int) -> tuple[int, int]:
    """The first so many steps that a request can still reach."""
    rows = last_rows(run, [state.attempt or 0])[-10:]
    seconds = [float(row["step_seconds"]) for row in rows]
    ahead = AHEAD_SECONDS[run.local] / max(1e-3, sum(seconds) / len(seconds)) if seconds else 1.0
    first = (state.step or 0) + 2 + int(ahead)
    if state.max_steps:
        first = max((state.step or 0) + 1, min(first, state.max_steps - n_steps + 1))
    return first, first + n_steps - 1


def ask(run: RunDir, state: RunState, config: ProfileConfig) -> Asked:
    """Leave the request for the agents of the live attempt. UserError if it cannot be met."""
    first, last = config.windows[0]
    assert state.attempt is not None
    job = run.job(state.attempt)
    if state.max_steps and last > state.max_steps:
        raise UserError(f"--steps: step {last} is never made; {state.run_id} has {state.max_steps}")
    if state.step is not None and first <= state.step:
        raise UserError(
            f"--steps: {state.run_id} is at step {state.step} already", hint="--steps +3 traces the next three"
        )
    workers = job.nnodes * job.nproc_per_node
    missing = [] if config.ranks == "all" else [rank for rank in config.ranks if rank >= workers]
    if missing:
        raise UserError(f"--ranks: {missing[0]} is no rank of {state.run_id}; its workers are 0 to {workers - 1}")
    before = {(one.first, one.rank) for one in list_profiles(run)}
    record = {**config.model_dump(mode="json"), "attempt": state.attempt, "time": time.time()}
    run.write_json(layout.PROFILE_REQUEST, record)
    return Asked(config, job, frozenset(before))


def await_profiles(run: RunDir, asked: Asked) -> list[Profile]:
    """Those that were asked for, as soon as all are there, or the attempt is over."""
    workers = asked.job.nnodes * asked.job.nproc_per_node
    ranks = range(workers) if asked.config.ranks == "all" else asked.config.ranks
    while True:
        state = state_of(run)
        found = [one for one in list_profiles(run) if _is_asked(one, asked)]
        over = not state.alive or state.attempt != asked.job.attempt
        if over or {one.rank for one in found} >= set(ranks):
            return found
        time.sleep(POLL_SECONDS[run.local])


def _is_asked(profile: Profile, asked: Asked) -> bool:
    new = (profile.first, profile.rank) not in asked.before
    return new and profile.attempt == asked.job.attempt and profile.first >= asked.steps[0]
