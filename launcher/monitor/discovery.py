"""Discovery of runs for a Prometheus: the targets of every live run, and the launcher's own facts about each.

Reads run directories and asks their owners and schedulers; serves nothing. A scan that fails keeps the last result: a
store with errors must not make a run vanish.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from launchyard.errors import UserError
from launchyard.launcher.agent.ownership import attempts_of, newest_job
from launchyard.launcher.agent.restart_policy import fruitless_failures
from launchyard.launcher.agent.torchrun_watch import GRACE_SECONDS
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.monitor.acknowledge import PAGING_ENDS, acknowledged
from launchyard.launcher.monitor.quiet import Quiet, quiet_of
from launchyard.launcher.monitor.tally import Tally
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.registry import GLANCE_SECONDS, registered
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import files, options, retry

if TYPE_CHECKING:
    from launchyard.training.recipe import Recipe


SHOWN_SECONDS = 900.0  # a run that has ended is still listed, so that its end is seen
LEAVING_SECONDS = 30.0  # from the outcome of an attempt to the end of its workers
AGAIN_SECONDS = 60.0  # between scans of a run in a store that has ended: it may be resumed
PAGING_SECONDS = 15.0  # the same of one that pages: it must be silent within a minute of its resume
Group = dict[str, Any]  # {"targets": ["127.0.0.1:1234"], "labels": {…}}, as http_sd and file_sd have it


@dataclass(frozen=True)
class Seen:
    """One run in one scan. `workers`: the number that its newest attempt should have; times in seconds."""

    run_id: str
    cluster: str
    state: RunState
    groups: tuple[Group, ...] = ()
    workers: int = 0
    ended: dict[str, int] = field(default_factory=dict)  # attempts that are over, by result
    queue_wait: float = 0.0
    notice: float = GRACE_SECONDS
    quiet: Quiet | None = None  # of a live attempt
    failures: int = 0  # in a row since the last checkpoint, or since somebody resumed it
    acknowledged: float | None = None  # when, if somebody knows of this end
    save_interval: float | None = None  # between two saves, as the recipe wants them; None: only at the end
    store: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return not self.state.alive and self.state.state not in ("pending", "unknown", "unreachable")

    @property
    def is_shown(self) -> bool:
        """Returns True if it is live, needs somebody, or ended or was acknowledged less than SHOWN_SECONDS ago."""
        since = max(self.state.since or 0.0, self.acknowledged or 0.0)
        return not self.is_over or self.needs_somebody or time.time() - since < SHOWN_SECONDS

    @property
    def needs_somebody(self) -> bool:
        """Returns True if it does not go on by itself, and nobody has said that they know."""
        return self.state.state in PAGING_ENDS and self.acknowledged is None

    def open(self) -> RunDir:
        return Place(self.state.url, self.store).open()


@dataclass(frozen=True)
class Place:
    """A run directory, or a folder of them, and the options of its store (StoreOptions)."""

    url: str
    store: dict[str, Any] = field(default_factory=dict)

    def open(self, url: str | None = None) -> RunDir:
        files.set_store_options(options.StoreOptions.model_validate(self.store))
        return RunDir(url or self.url)

    @property
    def store_key(self) -> tuple[str, str]:
        return self.url.partition("://")[0], repr(self.store)


def check_place(place: Place) -> None:
    """UserError unless it is a run, or a folder or prefix of a store that can be listed."""
    run = place.open()
    if run.local and not os.path.isdir(run.url):
        raise UserError(f"{place.url}: no such folder", hint="a run directory, or a folder or URL that holds some")
    run.listdir("")


class Discovery:
    """All runs of the registry (if asked for) and of `places`, scanned repeatedly. Not for several threads at once."""

    def __init__(self, places: Iterable[Place] = (), *, of_registry: bool = True) -> None:
        self._places = list(places)
        self._of_registry = of_registry
        self._seen: dict[str, Seen] = {}
        self._settled: dict[str, tuple[Any, float]] = {}  # url -> mark that a resume changes, time of the next scan
        self._tally = Tally()
        self.errors = 0

    def scan(self) -> list[Seen]:
        """Returns every run to show, by id. One that cannot be read now stays as it was."""
        silent = set[tuple[str, str]]()
        there = dict[str, None]()
        for place in self._all_places():
            there.update(dict.fromkeys(self._scan_place(place, silent)))
        for url in self._seen.keys() - there.keys():
            del self._seen[url]
            self._tally.forget(url)
        return sorted((seen for seen in self._seen.values() if seen.is_shown), key=lambda seen: seen.run_id)

    def _scan_place(self, place: Place, silent: set[tuple[str, str]]) -> list[str]:
        """The runs there; those known before, if a store does not answer. `silent`: stores that are not asked."""
        if place.store_key in silent:
            return self._known(place)
        try:
            urls = self._runs_of(place)
        except (OSError, ValueError):
            self._on_error(place, silent)
            return self._known(place)
        for url in urls:
            if place.store_key not in silent:
                self._scan_run(place, url, silent)
        return urls

    def _known(self, place: Place) -> list[str]:
        base = RunDir(place.url).url
        return [url for url in self._seen if url == base or url.startswith(f"{base}/")]

    def _all_places(self) -> Iterator[Place]:
        if self._of_registry:
            yield from (Place(entry.url, entry.store) for entry in registered())
        yield from self._places

    def _runs_of(self, place: Place) -> list[str]:
        """Run directories at a place: itself, or those right below it."""
        run = place.open()
        if run.url in self._seen or run.url in self._settled:
            return [run.url]
        with retry.retry_budget(GLANCE_SECONDS):
            if run.exists(layout.PLAN):
                return [run.url]
            names = [] if place not in self._places else run.listdir("")
            below = [run.path(name.rstrip("/")) for name in names]
            return [url for url in below if self._is_run(url)]

    def _is_run(self, url: str) -> bool:
        return url in self._seen or url in self._settled or RunDir(url).exists(layout.PLAN)

    def _on_error(self, place: Place, silent: set[tuple[str, str]]) -> None:
        self.errors += 1
        if files.is_remote(place.url):
            silent.add(place.store_key)  # the others of that store are not asked in this scan

    def _scan_run(self, place: Place, url: str, silent: set[tuple[str, str]]) -> None:
        run = place.open(url)
        mark = _mark(run)
        before, again = self._settled.get(url, (None, 0.0))
        if url in self._settled and mark == before and time.monotonic() < again:
            return
        try:
            with retry.retry_budget(GLANCE_SECONDS):
                seen = inspect_run(run, self._tally)
        except (OSError, ValueError):
            self._on_error(place, silent)
            return
        self._settled.pop(url, None)
        if seen is None:
            self._seen.pop(url, None)
            return
        self._seen[url] = replace(seen, store=place.store)
        if seen.is_over:
            for_good = run.local and seen.state.state != "lost"  # an owner that was taken for dead may come back
            again_after = PAGING_SECONDS if seen.needs_somebody else AGAIN_SECONDS
            self._settled[url] = (mark, time.monotonic() + (float("inf") if for_good else again_after))


def _mark(run: RunDir) -> Any:
    """A value that changes when a run is resumed or acknowledged, where that is cheap to read."""
    if not run.local:
        return None
    found = []
    for name in (layout.ATTEMPTS, layout.SUBMISSIONS, layout.OUTCOME, layout.ACKNOWLEDGED):
        with contextlib.suppress(OSError):
            found.append((name, os.stat(run.path(name)).st_mtime_ns))
    return found


def inspect_run(run: RunDir, tally: Tally | None = None) -> Seen | None:
    """One run as it is now; None if its directory is gone. OSError or ValueError if that is not known."""
    facts = RunFacts(run)
    if not facts.plan:
        return None
    state = state_of(run)
    cluster = str(facts.plan.get("cluster") or FIRST)
    attempts = run.attempts()
    newest = attempts[-1] if attempts else None
    record = run.outcome(newest) if newest is not None else None
    live = newest is not None and state.alive and state.attempt == newest and record is None
    job = run.job(newest) if newest is not None else None
    leaving = state.alive and job is not None and _is_leaving(record)
    intent = _intent(run, job) if job is not None and live else None
    known = acknowledged(run, state)
    return Seen(
        run_id=facts.run_id,
        cluster=cluster,
        state=state,
        groups=tuple(groups_of(run, facts.run_id, cluster, job.attempt)) if job and (live or leaving) else (),
        workers=job.nnodes * job.nproc_per_node if job and intent and intent.metrics.prometheus else 0,
        ended=(tally or Tally()).count(run, attempts),
        queue_wait=_queue_wait(run, state, job),
        notice=_notice(facts.plan),
        quiet=quiet_of(run, newest, state, recipe=intent, plan=facts.plan) if live and newest is not None else None,
        failures=_failures(run, state),
        acknowledged=known.time if known is not None else None,
        save_interval=_save_interval(intent, facts.plan, state) if intent is not None else None,
    )


def _is_leaving(record: OutcomeRecord | None) -> bool:
    """Returns True while workers of an attempt with a clean end wait for a last scrape; they still have targets."""
    return record is not None and record.outcome != "failed" and time.time() - record.time < LEAVING_SECONDS


def groups_of(run: RunDir, run_id: str, cluster: str, attempt: int) -> Iterator[Group]:
    """The workers of an attempt that listen, one group a node."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for target in run.targets(attempt):
        address = urlsplit(target.url)
        nodes.setdefault((str(target.node), address.path or "/metrics"), []).append(address.netloc)
    for (node, path), addresses in sorted(nodes.items()):
        labels = {"cluster": cluster, "run_id": run_id, "attempt": str(attempt), "node": node}
        yield {"targets": sorted(addresses), "labels": {**labels, "__metrics_path__": path}}


def _failures(run: RunDir, state: RunState) -> int:
    """In a row, by the rule that the owner decides by; 0 of a run that is over in good order."""
    job = newest_job(run)
    if job is None or state.state in ("completed", "stopped"):
        return 0
    chain = []
    for one in attempts_of(run, job.job_id):
        chain.append(one)
        if one.progressed:
            break
    return fruitless_failures(chain[::-1])


def _queue_wait(run: RunDir, state: RunState, job: Job | None) -> float:
    """Seconds that the newest submission waits, or has waited, for its job to start; 0 where nothing queues."""
    submission = run.newest_submission()
    if submission is None:
        return 0.0
    if state.state == "pending":
        return max(0.0, time.time() - submission.submitted)
    began = [run.job(n).created for n in run.attempts() if run.job(n).created >= submission.submitted]
    return max(0.0, min(began) - submission.submitted) if began else 0.0


def _intent(run: RunDir, job: Job) -> Recipe | None:
    """The recipe of an attempt; None if it cannot be read."""
    from launchyard.training.recipe import recipe_of

    try:
        return recipe_of(run, job)
    except (FileNotFoundError, ValueError):
        return None


def _save_interval(recipe: Recipe, plan: dict[str, Any], state: RunState) -> float | None:
    """Seconds between two saves of a run at its present speed; None if it saves only at its end."""
    every = recipe.checkpoint
    found = []
    if every.every_minutes:
        found.append(every.every_minutes * 60.0)
    tokens = (plan.get("batch") or {}).get("tokens_per_step")
    if every.every_steps and tokens and state.tokens_per_second:
        found.append(every.every_steps * tokens / state.tokens_per_second)
    return min(found, default=None)


def _notice(plan: dict[str, Any]) -> float:
    """Seconds between a warning and the loss of the nodes, as planned for the run."""
    return float((plan.get("request") or {}).get("notice_seconds") or GRACE_SECONDS)
