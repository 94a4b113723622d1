"""`launch monitor`: serves a Prometheus its targets, and the launcher's own series of every run. Stores nothing.

    /targets    the workers of all live runs, as http_sd wants them: always all of them, always 200
    /metrics    series of the launcher
    /           both as text

One thread scans the runs, again and again; a request gets the result of the last scan, so no store and no scheduler
that is slow holds up a scrape. Runs are found by launcher/monitor/discovery.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

from launchyard.errors import UserError
from launchyard.launcher.format import table
from launchyard.launcher.monitor.discovery import Discovery, Group, Seen
from launchyard.launcher.monitor.tally import RESULTS
from launchyard.launcher.runs.state import State
from launchyard.storage import local
from launchyard.training.telemetry.exporter import Labels, family_of
from launchyard.training.telemetry.metric_table import METRICS

PORT = 9465
SCAN_SECONDS = 5.0
FIRST_SECONDS = 20.0  # for a request to wait for the first scan: an empty list would mean that nothing runs
Sample = tuple[str, dict[str, str], float]


@dataclass(frozen=True)
class View:
    """The result of one scan. `took` in seconds, `time` in seconds since the epoch; `errors` since the start."""

    runs: tuple[Seen, ...]
    time: float
    took: float
    errors: int

    def groups(self) -> list[Group]:
        return [group for seen in self.runs for group in seen.groups]


class Monitor:
    """Scans every so many seconds, in a thread of its own; `view` is the last result."""

    def __init__(
        self, discovery: Discovery, *, every: float = SCAN_SECONDS, on_view: Iterable[Callable[[View], None]] = ()
    ) -> None:
        self._discovery = discovery
        self._every = every
        self._on_view = list(on_view)
        self._view: View | None = None
        self._seen = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def refresh(self) -> View:
        began = time.monotonic()
        runs = tuple(self._discovery.scan())
        view = View(runs, time.time(), time.monotonic() - began, self._discovery.errors)
        self._view = view
        self._seen.set()
        for action in self._on_view:
            action(view)
        return view

    def view(self) -> View | None:
        """Waits for the first scan, if there was none yet. Returns None if it takes too long."""
        self._seen.wait(FIRST_SECONDS)
        return self._view

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(FIRST_SECONDS)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self.refresh()
            except Exception as error:  # in one run, of any kind: the next scan must still happen
                print(f"a scan of the runs failed: {type(error).__name__}: {error}", flush=True)
            self._over.wait(self._every)


# -- series ----------------------------------------------------------------------------------------------------------
def exposition(view: View) -> str:
    """The launcher's series in Prometheus's text format, with help and kind from the one table."""
    from prometheus_client import generate_latest

    known = {metric.name: metric for metric in METRICS}
    found: dict[str, dict[Labels, float]] = {}
    for name, labels, value in (*_own_samples(view), *(one for seen in view.runs for one in _run_samples(seen))):
        found.setdefault(name, {})[tuple(labels[label] for label in known[name].labels)] = value
    families = [family_of(known[name], values, {}) for name, values in found.items()]
    return generate_latest(_Families(families)).decode()


class _Families:
    """A collector of series, as prometheus_client wants it."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def _own_samples(view: View) -> Iterator[Sample]:
    yield "launcher_monitor_last_look_timestamp_seconds", {}, view.time
    yield "launcher_monitor_look_seconds", {}, view.took
    yield "launcher_monitor_errors_total", {}, view.errors


def _run_samples(seen: Seen) -> Iterator[Sample]:
    labels = {"cluster": seen.cluster, "run_id": seen.run_id}
    for state in get_args(State):
        yield "launcher_run_state", {**labels, "state": state}, float(state == seen.state.state)
    for result in RESULTS:
        yield "launcher_run_attempts_total", {**labels, "result": result}, seen.ended.get(result, 0)
    yield "launcher_queue_wait_seconds", labels, seen.queue_wait
    yield "launcher_run_workers", labels, seen.workers
    yield "launcher_run_targets", labels, sum(len(group["targets"]) for group in seen.groups)
    yield "launcher_run_notice_seconds", labels, seen.notice
    yield "launcher_run_checkpoint_step", labels, seen.state.checkpoint or 0
    yield "launcher_run_failures_since_checkpoint", labels, seen.failures
    yield "launcher_run_acknowledged", labels, float(seen.acknowledged is not None)
    yield "launcher_run_unsaved_seconds", labels, seen.quiet.unsaved if seen.quiet is not None else 0.0
    if seen.quiet is not None:
        of_attempt = {**labels, "attempt": str(seen.state.attempt)}
        yield "launcher_run_quiet_seconds", of_attempt, seen.quiet.seconds
        yield "launcher_run_quiet_limit_seconds", of_attempt, seen.quiet.limit
    if seen.save_interval is not None:
        yield "launcher_run_save_interval_seconds", labels, seen.save_interval


# -- file_sd ---------------------------------------------------------------------------------------------------------
class TargetFile:
    """The same list in a file, for a Prometheus that cannot ask us. Replaced as a whole, and only if it changes."""

    def __init__(self, path: str) -> None:
        """UserError if its folder is not there, or its name is not one that Prometheus reads."""
        if not path.endswith((".json", ".yml", ".yaml")):
            raise UserError(f"--file-sd {path}: Prometheus reads .json, .yml and .yaml", hint="name it targets.json")
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise UserError(f"--file-sd {path}: its folder is not there")
        self._path = path
        self._last = ""

    def __call__(self, view: View) -> None:
        text = json.dumps(view.groups(), indent=1) + "\n"
        if text == self._last and os.path.exists(self._path):
            return
        local.replace_file(self._path, text.encode())
        self._last = text


# -- HTTP ------------------------------------------------------------------------------------------------------------
def make_server(monitor: Monitor, *, host: str, port: int) -> ThreadingHTTPServer:
    """Listening, not serving yet; `port` 0 takes a free one. UserError if it cannot listen there."""

    class Handler(BaseHTTPRequestHandler):
        server_version = "launchyard"
        sys_version = ""
        timeout = 10

        def do_GET(self) -> None:
            answer = _answer(self.path.partition("?")[0], monitor)
            status, kind, text = answer or (404, "text/plain", "there are /targets and /metrics\n")
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            with contextlib.suppress(ConnectionError):  # it waited no longer
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another --port, or 0 for a free one; launch sandbox status monitoring shows if its own is running",
        ) from error
    server.daemon_threads = True
    return server


def _answer(path: str, monitor: Monitor) -> tuple[int, str, str] | None:
    """Status, kind and text; None for an unknown page."""
    if path not in ("/targets", "/metrics", "/"):
        return None
    view = monitor.view()
    if view is None:  # not an empty list, which would mean that nothing runs
        return 503, "text/plain; charset=utf-8", "the first scan of the runs is not over yet\n"
    if path == "/targets":
        return 200, "application/json", json.dumps(view.groups(), indent=1) + "\n"
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4; charset=utf-8", exposition(view)
    return 200, "text/plain; charset=utf-8", "\n".join(page_lines(view)) + "\n"


def page_lines(view: View) -> list[str]:
    """The page of the last scan, for people: one line a run."""
    return ["launch monitor: /targets for Prometheus, /metrics for our own series", "", *target_table(view.runs)]


def target_table(runs: Iterable[Seen]) -> list[str]:
    rows = []
    for seen in runs:
        targets = [target for group in seen.groups for target in group["targets"]]
        shown = ", ".join(targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
        rows.append((seen.run_id, seen.cluster, seen.state.state, str(seen.workers), shown or "-"))
    return table(rows, ("RUN", "CLUSTER", "STATE", "WORKERS", "TARGETS"))
