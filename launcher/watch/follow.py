"""Watching a run until it ends: progress, events, and its last page. Reads the run directory; asks for stops there.

Ctrl-C: agreed save and stop. A second one: end it now. The run does not depend on its watcher: closing the
terminal leaves it running.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol, Self

from launchyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED
from launchyard.host.periodic import PeriodicTask
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import owner_alive
from launchyard.launcher.format import can_draw, duration, first_line, plain
from launchyard.launcher.report.ending import last_page
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.watch.progress import Progress
from launchyard.run.records import Job, OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.storage import retry

DRAW_SECONDS = 0.1
POLL_SECONDS = {True: 0.1, False: 1.0}  # local run directory, remote one
ALIVE_SECONDS = {True: 1.0, False: 5.0}
SILENCE_SECONDS = 5.0  # before a store is shown as not answering
ASK_SECONDS = 1.0
PLAIN_SECONDS = 5.0


def follow(
    run: RunDir, *, job: Job | None = None, out: IO[str] | None = None, brief: bool = False, presses: int = 0
) -> int:
    """Show a run until it ends; the exit code of `launch`: 0 done, 1 failed, 75 stopped, 130 ended by Ctrl-C.

    brief: without its last page, unless it failed. presses: of Ctrl-C, before it began.
    """
    out = out or sys.stdout
    progress = Progress(run)
    with _CtrlC(presses) as interrupts, _Live(out) if out.isatty() else _Plain(out) as view:
        record = _watch(_Watcher(run, job, progress), view, interrupts)
    if record is None:
        return _lost(run, progress, out)
    for line in _last_lines(run, record, out) if not brief or record.outcome == "failed" else ():
        print(plain(line, out), file=out)
    if interrupts.handled > 1:
        return EXIT_INTERRUPTED
    return {"completed": EXIT_DONE, "stopped": EXIT_STOPPED, "failed": EXIT_FAILED}[record.outcome]


def _last_lines(run: RunDir, record: OutcomeRecord, out: IO[str]) -> list[str]:
    """The last page; only the known outcome, if the store does not answer now."""
    try:
        return last_page(run, record, out=out)
    except OSError as error:
        return [f"! {record.outcome} ({record.reason}), and its last page cannot be read now: {error}"]


def _watch(watcher: _Watcher, view: View, presses: _CtrlC) -> OutcomeRecord | None:
    """Polls until the run has ended (its outcome) or its owner is gone (None)."""
    while True:
        watcher.poll()
        over = watcher.over
        for line in watcher.progress.news():
            view.print_line(line)
        view.show(watcher.line(), watcher.progress.share())
        if over:
            return watcher.ended
        time.sleep(DRAW_SECONDS)
        while presses.handled < presses.count:
            presses.handled += 1
            watcher.interrupt(presses.handled, view)


class _Watcher:
    """Polls a run. A remote one in a thread, so that Ctrl-C works even if its store hangs."""

    def __init__(self, run: RunDir, job: Job | None, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self.over = False
        self.ended: OutcomeRecord | None = None
        self._job = job
        self._refreshing = run.periodic(self._refresh, every=POLL_SECONDS[run.local])
        self._stopping: PeriodicTask | None = None
        self._checked = 0.0
        self._answered = time.monotonic()

    def poll(self) -> None:
        """OSError if a local run directory cannot be read; a store may answer again."""
        for task in (self._refreshing, self._stopping):
            if task is not None:
                task.poll()
                if self.run.local and task.failure is not None:
                    raise task.failure

    def line(self) -> str:
        silent = time.monotonic() - self._answered
        if silent < SILENCE_SECONDS:
            return self.progress.line()
        failure = f": {first_line(str(self._refreshing.failure), 120)}" if self._refreshing.failure else ""
        return f"{self.progress.line()} · its store does not answer for {duration(silent)}{failure}"

    def interrupt(self, times: int, view: View) -> None:
        if times == 1:
            self._stopping = self.run.periodic(self._request_stop, every=ASK_SECONDS)
            view.print_line("! saving and stopping after this step; Ctrl-C again ends it now, without a save")
        elif times == 2 and self._job is not None:
            self._stopping = None
            view.print_line("! ending it now; launch resume goes on from the last checkpoint")
            from launchyard.launcher.backends.base import load_backend

            try:
                with retry.retry_budget(ASK_SECONDS):
                    load_backend(self._job.backend).cancel(self.run, self._job)
            except OSError as error:
                view.print_line(f"! {error}")

    def _request_stop(self) -> None:
        """Requests a stop, once: a resumed run would take another request for its own."""
        self.run.request_stop("stop")
        self._stopping = None

    def _refresh(self) -> None:
        ended = _final_outcome(self.run)
        is_gone = ended is None and self._is_gone()
        self.progress.refresh()
        if ended is not None or is_gone:
            self.ended = ended or _final_outcome(self.run)
            self.over = True
        self._answered = time.monotonic()

    def _is_gone(self) -> bool:
        """Returns True if the owner died without an outcome. Checked rarely."""
        now = time.monotonic()
        if now - self._checked < ALIVE_SECONDS[self.run.local]:
            return False
        self._checked = now
        self._job = newest_job(self.run) or self._job
        return not owner_alive(self.run, self._job) and _final_outcome(self.run) is None


def _final_outcome(run: RunDir) -> OutcomeRecord | None:
    """The run's outcome, if it is about its newest attempt."""
    record = run.outcome()
    if record is None:
        return None
    attempts = run.attempts()
    return record if not attempts or record.attempt >= attempts[-1] else None


class _CtrlC:
    """Counts Ctrl-C instead of raising at any point of the program; from the third on it raises again."""

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.handled = 0
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


def _lost(run: RunDir, progress: Progress, out: IO[str]) -> int:
    run_id = RunFacts(run).run_id
    print(plain(f"✗ lost       its owner left no outcome, after {progress.line() or 'no step'}", out), file=out)
    print(f"  launch why {run_id}      the cause\n  launch resume {run_id}   go on from the last checkpoint", file=out)
    return EXIT_FAILED


# -- views ----------------------------------------------------------------------------------------------------------
class View(Protocol):
    def print_line(self, line: str) -> None: ...
    def show(self, line: str, share: float) -> None: ...


class _Plain:
    """One line every few seconds, for logs and pipes; the same line again only after a minute."""

    def __init__(self, out: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._printed_at = 0.0
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def print_line(self, line: str) -> None:
        print(plain(line, self._out), file=self._out, flush=True)

    def show(self, line: str, share: float) -> None:
        if self._clock() - self._printed_at >= (PLAIN_SECONDS if line != self._line else 60.0):
            self._printed_at = self._clock()
            self._line = line
            self.print_line(line)


class _Live:
    """A bar that stays at the bottom of the terminal, with events above it."""

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

    def print_line(self, line: str) -> None:
        self._console.print(plain(line, self._console.file))

    def show(self, line: str, share: float) -> None:
        from rich.text import Text

        width = 30
        done = round(share * width)
        full, empty = ("━", "─") if self._boxes else ("#", "-")
        text = plain(line, self._console.file)
        self._live.update(Text.assemble((full * done, "green"), (empty * (width - done), "bright_black"), f"  {text}"))
