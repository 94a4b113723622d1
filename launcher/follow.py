"""Watching a run until it ends: progress, events, and its last page. Reads the run directory; asks for stops there.

Ctrl-C: agreed save and stop. A second one: end it now. The run does not need its watcher: closing the terminal
leaves it running.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol, Self

from launcher.claims import newest_job, owner_alive
from launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED
from launcher.report import can_draw, duration, last_page, plain
from launcher.runs import RunFacts
from launcher.summary import count
from launcher.tail import RowTail
from training.rundir import Job, OutcomeRecord, RunDir

LOOK_SECONDS = 0.1
ALIVE_SECONDS = 1.0
PLAIN_SECONDS = 5.0
_WINDOW = 20  # steps over which speed is averaged


def follow(run: RunDir, *, job: Job | None = None, out: IO[str] | None = None) -> int:
    """Show a run until it ends; the exit code of `launch`: 0 done, 1 failed, 75 stopped, 130 ended by Ctrl-C."""
    out = out or sys.stdout
    progress = Progress(run)
    with _CtrlC() as presses, _Live(out) if out.isatty() else _Plain(out) as view:
        record = _watch(run, job, progress, view, presses)
    if record is None:
        return _lost(run, progress, out)
    for line in last_page(run, record, out=out):
        print(plain(line, out), file=out)
    if presses.heard > 1:
        return EXIT_INTERRUPTED
    return {"completed": EXIT_DONE, "stopped": EXIT_STOPPED, "failed": EXIT_FAILED}[record.outcome]


def _watch(run: RunDir, job: Job | None, progress: Progress, view: View, presses: _CtrlC) -> OutcomeRecord | None:
    """Look until the run has ended (how) or its owner is gone (None)."""
    gone = _Gone(run, job)
    while True:
        ended = _last_word(run)
        is_gone = ended is None and gone()
        for line in progress.look():
            view.say(line)
        view.show(progress.line(), progress.share())
        if ended is not None or is_gone:
            return ended or _last_word(run)
        time.sleep(LOOK_SECONDS)
        while presses.heard < presses.count:
            presses.heard += 1
            _interrupt(run, presses.heard, view)


class _CtrlC:
    """Counts Ctrl-C instead of raising wherever the program happens to be; from the third on it raises again."""

    def __init__(self) -> None:
        self.count = self.heard = 0
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_press(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 2:
            raise KeyboardInterrupt


def _interrupt(run: RunDir, times: int, view: View) -> None:
    if times == 1:
        run.request_stop("stop")
        view.say("! saving and stopping after this step; Ctrl-C again ends it now, without a save")
    elif times == 2:
        view.say("! ending it now; launch resume goes on from the last checkpoint")
        job = newest_job(run)
        if job is not None:
            from launcher.backends import load_backend

            load_backend(job.backend).cancel(run, job)


def _last_word(run: RunDir) -> OutcomeRecord | None:
    """The run's outcome, if it is about its newest attempt."""
    record, attempts = run.outcome(), run.attempts()
    return record if record is not None and (not attempts or record.attempt >= attempts[-1]) else None


class _Gone:
    """Has the owner died without a last word? Asked rarely."""

    def __init__(self, run: RunDir, job: Job | None) -> None:
        self._run, self._job, self._looked = run, job, 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._looked < ALIVE_SECONDS:
            return False
        self._looked = now
        job = newest_job(self._run) or self._job
        return not owner_alive(self._run, job) and _last_word(self._run) is None


def _lost(run: RunDir, progress: Progress, out: IO[str]) -> int:
    run_id = RunFacts(run).run_id
    print(plain(f"✗ lost       its owner is gone without a word, after {progress.line() or 'no step'}", out), file=out)
    print(f"  launch why {run_id}      the cause\n  launch resume {run_id}   go on from the last checkpoint", file=out)
    return EXIT_FAILED


# -- what is seen ----------------------------------------------------------------------------------------------------
class Progress:
    """Where a run stands, put together from rows and events as they come."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._facts = run, RunFacts(run)
        self._attempt: int | None = None
        self._max_steps: int | None = None
        self._phase = "waiting for its first attempt"
        self._row: dict[str, Any] | None = None
        self._since = time.monotonic()
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)  # time, step, tokens

    def look(self) -> list[str]:
        """Take in what is new; lines worth saying."""
        said = self._new_attempt()
        if self._attempt is None:
            return said
        for event in self._events.rows():
            said += self._on_event(event)
        for row in self._rows.rows():
            self._row, self._phase = row, "training"
            self._recent.append((float(row["time"]), int(row["step"]), int(row["tokens_seen"])))
        return said

    def line(self) -> str:
        """`step 120/400 · loss 4.321 · 12.3k tokens/s · ETA 1m 20s`, or what it does before its first step."""
        if self._row is None or self._phase != "training":
            return f"{self._phase} ({duration(time.monotonic() - self._since)})"
        words = [f"step {self._row['step']}/{self._max_steps or '?'}", f"loss {self._row['loss']:.3f}"]
        tokens_per_second, eta = self._speed()
        words.append(f"{count(tokens_per_second)} tokens/s")
        if eta is not None:
            words.append(f"ETA {duration(eta)}")
        return " · ".join(words)

    def share(self) -> float:
        """Share of the steps that is done."""
        return min(1.0, self._row["step"] / self._max_steps) if self._row and self._max_steps else 0.0

    def _speed(self) -> tuple[float, float | None]:
        """Tokens a second, and seconds to the end, over the last steps with all that lay between them."""
        assert self._row is not None
        (began, step0, tokens0), (ended, step1, tokens1) = self._recent[0], self._recent[-1]
        if ended <= began or step1 <= step0:
            left = (self._max_steps or step1) - step1
            return float(self._row["tokens_per_second"]), left * float(self._row["step_seconds"])
        each = (ended - began) / (step1 - step0)
        eta = (self._max_steps - step1) * each if self._max_steps else None
        return (tokens1 - tokens0) / (ended - began), eta

    def _new_attempt(self) -> list[str]:
        attempts = self._run.attempts()
        if not attempts or attempts[-1] == self._attempt:
            return []
        said = []
        if self._attempt is not None and (ended := self._run.outcome(self._attempt)) is not None:
            said = [f"! attempt {ended.attempt} {ended.outcome} ({ended.reason}): {ended.message}"]
        self._attempt = attempts[-1]
        folder = self._run.attempt_dir(self._attempt)
        self._events = RowTail(self._run, folder, "events")
        self._rows = RowTail(self._run, "metrics", f"steps-{self._attempt:04d}")
        self._max_steps = self._facts.max_steps()
        self._row = None
        self._recent.clear()
        self._enter("starting workers" if self._attempt == 0 else f"starting attempt {self._attempt}")
        return said

    def _enter(self, phase: str) -> None:
        self._phase, self._since = phase, time.monotonic()

    def _on_event(self, event: dict[str, Any]) -> list[str]:
        step = event.get("step")
        match event.get("event"):
            case "process started":
                self._enter("building the model")
            case "started" if step:
                self._enter(f"resuming from step {step}")
                return [f"✓ resumed from step {step}"]
            case "started":
                self._enter("first step")
            case "fell back":
                return [f"! checkpoint of step {step} is damaged, going further back: {event.get('message', '')}"]
            case "saved":
                return [f"✓ saved step {step} ({event.get('kind')}, {float(event.get('seconds', 0)):.1f} s)"]
            case "save failed":
                return [f"! saving step {step} failed: {event.get('message', '')}"]
            case "validated":
                return [f"✓ validation loss {float(event['loss']):.4f} at step {step}"]
            case "stopping":
                self._enter(f"saving step {step} to stop ({event.get('reason')})")
            case "exported" | "sampled" | "finished":
                self._enter("finishing")
        return []


# -- how it is shown -------------------------------------------------------------------------------------------------
class View(Protocol):
    def say(self, line: str) -> None: ...
    def show(self, line: str, share: float) -> None: ...


class _Plain:
    """One line every few seconds, for logs and pipes; the same line again only after a minute."""

    def __init__(self, out: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock, self._told = out, clock, 0.0
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def say(self, line: str) -> None:
        print(plain(line, self._out), file=self._out, flush=True)

    def show(self, line: str, share: float) -> None:
        if self._clock() - self._told >= (PLAIN_SECONDS if line != self._line else 60.0):
            self._told, self._line = self._clock(), line
            self.say(line)


class _Live:
    """A bar that stays at the bottom of the terminal, with what happens above it."""

    def __init__(self, out: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=out, highlight=False, markup=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True, redirect_stdout=False)
        self._boxes = can_draw(out)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(plain(line, self._console.file))

    def show(self, line: str, share: float) -> None:
        from rich.text import Text

        width = 30
        done = round(share * width)
        full, empty = ("━", "─") if self._boxes else ("#", "-")
        said = plain(line, self._console.file)
        self._live.update(Text.assemble((full * done, "green"), (empty * (width - done), "bright_black"), f"  {said}"))
