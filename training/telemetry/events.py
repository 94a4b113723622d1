"""Events of a worker, written to its log, the run directory and the metrics.

Knows the names of events and nothing of their causes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import IO, Any, Protocol

from launchyard.run import events, layout
from launchyard.run.append import Appender
from launchyard.run.rundir import RunDir
from launchyard.storage.retry import RetryEvent
from launchyard.training.distributed import World
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.phases import PhaseClock

REPEAT_SECONDS = 30.0  # between two events about the same trouble
REPORT_SECONDS = 2.0  # stores stumble all the time


class OnEvent(Protocol):
    """Called with each event; the facts are small and go into JSON."""

    def __call__(self, name: str, /, **facts: Any) -> None: ...


class Events:
    """Prints every event to a log, if there is one; rank 0 writes it to events.jsonl of the attempt too."""

    def __init__(self, run: RunDir, world: World, *, log: IO[str] | None = None) -> None:
        self._log = log
        stem = layout.events(world.attempt)
        self._rows = Appender(run, stem, flush_seconds=0.0 if run.local else 2.0) if world.is_main else None

    def __call__(self, name: str, /, **facts: Any) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # it may lie on a disk that is full
                print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()), file=self._log)
        if self._rows is not None:
            self._rows.add({"event": name, "time": time.time(), **facts})

    def unwritten(self) -> dict[str, list[str]]:
        return {} if self._rows is None else self._rows.unwritten()

    def flush(self, *, sync: bool = False) -> None:
        if self._rows is not None:
            self._rows.flush(sync=sync)


class ReadingEvents:
    """Tells now and then how much of the weights has been read; each tensor is a sign of life."""

    def __init__(self, on_event: OnEvent, clock: PhaseClock) -> None:
        self._on_event = on_event
        self._clock = clock
        self._told_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        self._clock.beat()
        now = time.monotonic()
        if now - self._told_at >= REPORT_SECONDS:
            self._told_at = now
            self._on_event(events.READING_WEIGHTS, bytes=done, total_bytes=total)


class SaveEvents:
    """Adds the events of saves to the metrics as well."""

    def __init__(self, on_event: OnEvent, exporter: Exporter) -> None:
        self._on_event = on_event
        self._exporter = exporter
        self._failures = 0  # in a row

    def __call__(self, name: str, /, **facts: Any) -> None:
        self._on_event(name, **facts)
        if name not in (events.SAVED, events.SAVE_FAILED):
            return
        result = "ok" if name == events.SAVED else "failed"
        self._failures = 0 if name == events.SAVED else self._failures + 1
        self._exporter.set("trainer_checkpoint_failures_in_a_row", self._failures)
        self._exporter.add("trainer_checkpoint_saves_total", kind=facts["kind"], result=result)
        if name == events.SAVED:
            self._exporter.set("trainer_checkpoint_last_success_timestamp_seconds", time.time())
            self._exporter.set("trainer_checkpoint_size_bytes", facts.get("bytes", 0))
            for stage in ("stage", "upload", "commit"):
                seconds = facts.get("stall_seconds" if stage == "stage" else f"{stage}_seconds")
                if seconds is not None:  # only rank 0 commits
                    self._exporter.observe("trainer_checkpoint_save_duration_seconds", seconds, stage=stage)


class StoreEvents:
    """Counts retried requests to a store, and reports a store that has failed for a while."""

    def __init__(self, run: RunDir, on_event: OnEvent, exporter: Exporter) -> None:
        self._run_url = f"{run.url}/"
        self._checkpoints = run.path(layout.CHECKPOINTS)
        self._on_event = on_event
        self._exporter = exporter
        self._reported_at: float | None = None
        self._lock = threading.Lock()

    def __call__(self, retried: RetryEvent) -> None:
        if not retried.over and retried.path.startswith(self._checkpoints):
            self._exporter.add("trainer_checkpoint_retries_total")
        elif not retried.over and not retried.path.startswith(self._run_url):
            self._exporter.add("trainer_data_retries_total")
        if retried.seconds + retried.pause < REPORT_SECONDS:
            return
        with self._lock:
            now = time.monotonic()
            last = self._reported_at
            if last is None if retried.over else last is not None and now - last < REPEAT_SECONDS:
                return
            self._reported_at = None if retried.over else now
        message = f"could not {retried.what}: {retried.message}" if retried.message else f"could {retried.what}"
        self._on_event(
            events.STORE_ANSWERS if retried.over else events.STORE_TROUBLE,
            path=retried.path,
            seconds=round(retried.seconds, 1),
            message=message,
        )
