"""`launch monitor --webhook`: pages without a Prometheus, in the words of `launch why`.

Each trouble of a run is told once, and its end once. What was told stands in a file, so that a monitor which is started
again says nothing twice. Sends no credentials, and no request from the thread that looks at the runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launchyard.errors import LaunchError
from launchyard.host.folders import user_state_folder
from launchyard.launcher.agent.notify import send
from launchyard.launcher.format import duration
from launchyard.launcher.monitor.discovery import Seen
from launchyard.launcher.monitor.server import View
from launchyard.launcher.runs.registry import GLANCE_SECONDS
from launchyard.launcher.runs.why import explain
from launchyard.storage import local, retry
from launchyard.storage.redact import redact, without_credentials

LOOP_FAILURES = 3  # these two as the alert rules have them
LONG_WAIT_SECONDS = 86400.0
LATER_SECONDS = 30.0  # before a page is tried again that its webhook did not take
TEXT_CHARACTERS = 1900  # Discord takes 2000
MENDED = "mended"


@dataclass(frozen=True)
class Trouble:
    """`key` tells two troubles of a run apart; `words` stand before those of `launch why`."""

    event: str
    key: str
    words: str = ""


def troubles(seen: Seen) -> Iterator[Trouble]:
    """What somebody should be paged for, the worst alone."""
    state = seen.state
    quiet = seen.quiet
    if seen.needs_somebody and seen.is_over:  # not while its owner still writes its last words
        yield Trouble(state.state, f"{state.state}-{state.attempt}")
    elif seen.failures >= LOOP_FAILURES and not seen.is_over:
        words = f"{seen.run_id} has failed {seen.failures} times in a row without a new checkpoint."
        yield Trouble("restart loop", f"loop-{state.checkpoint}", words)
    elif (
        quiet is not None
        and quiet.seconds > quiet.limit
        and state.state in ("starting", "running", "saving", "unknown")
    ):
        words = f"{seen.run_id} has given no sign for {duration(quiet.seconds)}, longer than what it does now may take."
        yield Trouble("stalled", f"stalled-{state.attempt}", words)
    elif state.state == "pending" and seen.queue_wait > LONG_WAIT_SECONDS:
        words = f"{seen.run_id} has waited in the queue for {duration(seen.queue_wait)}."
        yield Trouble("waiting", f"waiting-{state.attempt}", words)


@dataclass(frozen=True)
class _Page:
    run_id: str
    trouble: Trouble
    facts: dict[str, object]


class Pager:
    """Called after each look at the runs. `report` gets a line for each page, and for each that was not taken."""

    def __init__(self, url: str, report: Callable[[str], None]) -> None:
        self._url = url
        self._report = report
        mark = hashlib.sha256(url.encode()).hexdigest()[:16]  # the URL may be a password
        self._file = user_state_folder("monitor") / f"pages-{mark}.json"
        self._told = _read(self._file)
        self._lock = threading.Lock()
        self._not_before: dict[tuple[str, str], float] = {}
        self._pages: queue.Queue[_Page] = queue.Queue()
        threading.Thread(target=self._send_for_ever, name="pages", daemon=True).start()

    def __call__(self, view: View) -> None:
        for seen in view.runs:
            try:
                with retry.retry_budget(GLANCE_SECONDS):
                    self._look_at(seen)
            except (LaunchError, OSError, ValueError) as error:  # the next look will do
                self._report(f"✗ not paged  {seen.run_id}: {redact(str(error))}")

    def wait(self) -> None:
        """Until each page of the looks so far was taken or refused."""
        self._pages.join()

    def _look_at(self, seen: Seen) -> None:
        found = list(troubles(seen))
        with self._lock:
            told = self._told.get(seen.run_id, [])
        for trouble in found:
            if trouble.key not in told:
                self._page(seen, trouble)
        if told and not found:
            if seen.acknowledged is not None or (seen.is_over and seen.state.state == "stopped"):
                self._write(seen.run_id, [])  # by a person, who knows
            else:
                self._page(seen, Trouble(MENDED, MENDED))

    def _page(self, seen: Seen, trouble: Trouble) -> None:
        mark = (seen.run_id, trouble.key)
        if time.monotonic() < self._not_before.get(mark, 0.0):
            return
        facts = page_facts(seen, trouble)
        if facts is not None:
            self._not_before[mark] = float("inf")  # until it was sent, or not
            self._pages.put(_Page(seen.run_id, trouble, facts))

    def _send_for_ever(self) -> None:
        while True:
            page = self._pages.get()
            try:
                self._send(page)
            finally:
                self._pages.task_done()

    def _send(self, page: _Page) -> None:
        problem = send(self._url, page.facts)
        mark = (page.run_id, page.trouble.key)
        if problem is None:
            mended = page.trouble.event == MENDED
            self._write(page.run_id, [] if mended else [page.trouble.key])
            self._not_before.pop(mark, None)
            self._report(f"✓ paged  {page.run_id}: {page.trouble.event}")
        else:
            self._not_before[mark] = time.monotonic() + LATER_SECONDS
            self._report(f"✗ not paged  {page.run_id}: {page.trouble.event}: {problem}")

    def _write(self, run_id: str, keys: list[str]) -> None:
        """Another monitor may write of its runs into the same file."""
        with self._lock:
            self._told[run_id] = keys
            known = {**_read(self._file), run_id: keys}
            kept = {name: theirs for name, theirs in known.items() if theirs}
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                local.replace_file(self._file, json.dumps(kept).encode(), mode=0o600)
            except OSError as error:
                self._report(f"! {self._file}: {error.strerror}: a monitor that is started again pages twice")


def page_facts(seen: Seen, trouble: Trouble) -> dict[str, object] | None:
    """The body of a page; None if the run is not in that state any more."""
    why = explain(seen.open())
    if why.state != seen.state.state:
        return None
    mended = f"{seen.run_id} goes on." if not seen.is_over else f"{seen.run_id} has {seen.state.state}."
    words = mended if trouble.event == MENDED else " ".join(filter(None, (trouble.words, why.text)))
    text = redact(words)[:TEXT_CHARACTERS]
    facts = {
        "event": trouble.event,
        "run_id": seen.run_id,
        "name": seen.state.name,
        "url": without_credentials(seen.state.url),
        "cluster": seen.cluster,
        "state": why.state,
        "attempt": why.attempt,
        "step": seen.state.step,
        "checkpoint": why.checkpoint,
        "reason": why.reason,
        "next": why.next,
    }
    return {"text": text, "content": text, **{key: value for key, value in facts.items() if value is not None}}


def _read(path: Path) -> dict[str, list[str]]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return {str(run_id): [str(key) for key in keys] for run_id, keys in found.items() if isinstance(keys, list)}
    return {}
