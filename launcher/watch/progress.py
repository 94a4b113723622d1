"""The progress of a run, from its rows and events as they come, as lines. Reads; shows nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from launchyard.launcher.format import duration, first_line, progress_line, size
from launchyard.launcher.runs.facts import RunFacts
from launchyard.run import events, layout
from launchyard.run.records import FROM_MEMORY
from launchyard.run.rows import PACE_ROWS, pace_of
from launchyard.run.rundir import RunDir
from launchyard.run.tail import RowTail

_TICK = 0.001  # resolution of the time of rows


class Progress:
    """Progress of the newest attempt. One thread may refresh while another shows."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._facts = RunFacts(run)
        self._lock = threading.Lock()
        self._attempt: int | None = None
        self._max_steps: int | None = None
        self._phase = "waiting for its first attempt"
        self._phase_from = 0.0
        self._since = time.monotonic()
        self._row: dict[str, Any] | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=PACE_ROWS)
        self._news: deque[str] = deque()

    def refresh(self) -> None:
        """Reads new rows and events. OSError if that fails now; the next call goes on from there."""
        self._refresh_attempt()
        if self._attempt is None:
            return
        for event in self._events.rows():
            with self._lock:
                self._news.extend(self._on_event(event))
        for row in self._rows.rows():
            with self._lock:
                self._on_row(row)

    def news(self) -> list[str]:
        """New lines to print, each once."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def line(self) -> str:
        """`step 120/400 · loss 4.321 · 12.3k tokens/s · ETA 1m 20s`, or its phase if it is not training."""
        with self._lock:
            if self._row is None or self._phase != "training":
                return f"{self._phase} ({duration(time.monotonic() - self._since)})"
            pace = pace_of(list(self._recent))
            step = int(self._row["step"])
            return progress_line(
                step=step,
                max_steps=self._max_steps,
                loss=self._row["loss"],
                tokens_per_second=pace.tokens_per_second if pace else None,
                eta_seconds=pace.seconds_to(self._max_steps, step=step) if pace and self._max_steps else None,
            )

    def share(self) -> float:
        """Share of the steps that is done."""
        with self._lock:
            return min(1.0, self._row["step"] / self._max_steps) if self._row and self._max_steps else 0.0

    def _refresh_attempt(self) -> None:
        attempts = self._run.attempts()
        if not attempts or attempts[-1] == self._attempt:
            return
        newest = attempts[-1]
        max_steps = self._facts.max_steps()
        ended = self._run.outcome(self._attempt) if self._attempt is not None else None
        if ended is not None:
            self._news.append(f"! attempt {ended.attempt} {ended.outcome} ({ended.reason}): {ended.message}")
        with self._lock:
            self._events = RowTail(self._run, layout.attempt_folder(newest), layout.EVENTS)
            self._rows = RowTail(self._run, layout.METRICS, layout.rows_prefix(layout.STEPS, newest))
            self._attempt = newest
            self._max_steps = max_steps
            self._row = None
            self._recent.clear()
            self._enter("starting workers" if newest == 0 else f"starting attempt {newest}")

    def _enter(self, phase: str, at: float = 0.0) -> None:
        """`at`: by the clock of rows; earlier rows do not end the phase."""
        self._phase = phase
        self._phase_from = at
        self._since = time.monotonic()

    def _on_row(self, row: dict[str, Any]) -> None:
        self._row = row
        self._recent.append(row)
        if float(row["time"]) > self._phase_from + _TICK:
            self._phase = "training"

    def _on_event(self, event: dict[str, Any]) -> list[str]:
        """Changes the phase. Returns lines to print."""
        step = event.get("step")
        at = float(event.get("time", 0.0))
        message = event.get("message", "")
        match event.get("event"):
            case events.PROCESS_STARTED:
                self._enter("building the model", at)
            case events.READING_WEIGHTS:
                self._phase = f"reading weights {size(event['bytes'])} of {size(event['total_bytes'])}"
                self._phase_from = at
            case events.STARTED:
                self._enter(f"resuming from step {step}" if step else "first step", at)
                return [_resumed(event)] if step else []
            case events.VALIDATING:
                self._enter(f"validating at step {step}", at)
            case events.VALIDATED:
                self._enter("training", at)
                of = f" of {event['set']}" if event.get("set") else ""
                return [f"✓ validation loss{of} {float(event['loss']):.4f} at step {step}"]
            case events.ENDING_EARLY:
                return [f"✓ ends early at step {step}: {message}"]
            case events.ASKING_TASKS:
                self._enter(f"asking tasks at step {step}", at)
            case events.TASKS_DONE:
                self._enter("training", at)
                scores = ", ".join(f"{name} {float(value):.4g}" for name, value in event.get("scores", {}).items())
                return [f"✓ step {step}: {scores}"]
            case events.SAMPLING:
                self._enter(f"writing a text at step {step}", at)
            case events.SAMPLED:
                self._enter("training", at)
                return [f"✓ step {step} writes: {first_line(' '.join(str(event.get('text')).split()), 100)}"]
            case events.NOT_SAMPLED:
                self._enter("training", at)
                return [f"! step {step} has written no text: {message}"]
            case events.TASKS_FAILED:
                self._enter("training", at)
                return [f"! tasks at step {step} have no scores: {message}"]
            case events.STOPPING:
                self._enter(f"saving step {step} to stop ({event.get('reason')})", at)
            case events.EXPORTED | events.FINISHED:
                self._enter("finishing", at)
            case events.SAVED:
                return [f"✓ saved step {step} ({event.get('kind')}, {float(event.get('seconds', 0)):.1f} s)"]
            case events.SAVE_FAILED:
                return [f"! saving step {step} failed: {message}"]
            case events.FELL_BACK:
                return [f"! checkpoint of step {step} is damaged, going further back: {message}"]
            case events.PASSED_OVER:
                return [f"! checkpoint of step {step} does not count: {message}"]
            case events.CLEANUP_FAILED:
                return [f"! {event.get('what') or 'old files'} stay: {message}"]
            case events.DATA_TROUBLE:
                return [f"! {message}"]
            case events.STORE_TROUBLE:
                return [f"! its store has failed for {duration(float(event.get('seconds', 0)))}: {message}"]
            case events.STORE_ANSWERS:
                return [f"✓ its store answers again, after {duration(float(event.get('seconds', 0)))}"]
        return []


def _resumed(event: Mapping[str, object]) -> str:
    where = ", from memory" if event.get("source") == FROM_MEMORY else ""
    return f"✓ resumed from step {event.get('step')}{where}"
