"""`launch status RUN --watch`: one run on a few lines of a terminal, kept up to date. Reads its directory.

Watched   reads new rows and events, and returns Facts
lines     Facts as text and bars, as wide as the terminal
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import IO, Any, Self

from launchyard.errors import EXIT_DONE
from launchyard.launcher.format import can_draw, count, duration, json_text, plain
from launchyard.launcher.report.terminal_chart import sparkline
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import events as names
from launchyard.run import layout
from launchyard.run.goodput import AttemptFacts, Ledger, account, read_facts
from launchyard.run.rundir import RunDir
from launchyard.run.svg import Course
from launchyard.run.tail import RowTail
from launchyard.storage.errors import StoreError
from launchyard.training.telemetry.phases import PHASES

REFRESH_SECONDS = {True: 1.0, False: 5.0}  # local run directory, remote one
ASK_SECONDS = 10.0  # between two questions to a scheduler
ALL_SECONDS = 2.0
PLAIN_SECONDS = 10.0
PLAIN_WIDTH = 80
WINDOW = 50  # steps over which phases are averaged
MIN_WIDTH = 40
MAX_WIDTH = 110


@dataclass(frozen=True)
class Facts:
    """A run at one moment. Shares sum to 1; `goodput`: seconds by cause since the first submit."""

    state: RunState
    losses: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    mfu: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)
    saved_at: float | None = None
    validation: tuple[int, float] | None = None
    validation_sets: dict[str, tuple[int, float]] = field(default_factory=dict)
    out_of_line: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0

    @property
    def goodput_ratio(self) -> float | None:
        total = sum(self.goodput.values())
        return self.goodput["productive"] / total if total > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Without the curves, which are `launch metrics --jsonl`."""
        left_out = ("losses", "speeds", "state")
        rest = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {**self.state.to_json(), **rest, "goodput_ratio": self.goodput_ratio, "time": time.time()}


class Watched:
    """One run, read repeatedly: each row is read once, however long the run is."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._attempt: int | None = None
        self._losses = Course()
        self._recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._events: list[dict[str, Any]] = []
        self._ledger: Ledger | None = None
        self._state = state_of(run)
        self._asked = time.monotonic()

    def refresh(self) -> Facts:
        """OSError if it cannot be read now; the next call goes on from there."""
        now = time.monotonic()
        if self._state.job_id is None or now - self._asked >= ASK_SECONDS:
            self._state = state_of(self._run)
            self._asked = now
        self._switch_to_newest()
        if self._attempt is not None:
            self._events += self._event_tail.rows()
            for row in self._row_tail.rows():
                self._take(row)
        return self._facts()

    def _switch_to_newest(self) -> None:
        attempts = self._run.attempts()
        if not attempts or attempts[-1] == self._attempt:
            return
        newest = attempts[-1]
        if self._attempt is None:
            for row in itertools.takewhile(lambda row: row["attempt"] != newest, self._run.rows(layout.STEPS)):
                self._losses.add(float(row["step"]), float(row["loss"]))
        self._row_tail = RowTail(self._run, layout.METRICS, layout.rows_prefix(layout.STEPS, newest))
        self._event_tail = RowTail(self._run, layout.attempt_folder(newest), layout.EVENTS)
        submitted = [submission.submitted for submission in self._run.submissions()]
        job = self._run.job(newest)
        mine = AttemptFacts(newest, job.created, self._run.was_queued(job))
        self._ledger = account(submitted, [*read_facts(self._run, before=newest), mine])
        self._attempt = newest
        self._events = []
        self._recent.clear()

    def _take(self, row: dict[str, Any]) -> None:
        step = int(row["step"])
        self._losses.back_to(step - 1)  # an earlier attempt may have been further, and its steps are repeated
        self._losses.add(float(step), float(row["loss"]))
        self._recent.append(row)
        if self._ledger is not None:
            self._ledger.row(row)

    def _facts(self) -> Facts:
        saved = [float(event["time"]) for event in self._events if event.get("event") == names.SAVED]
        validated = [event for event in self._events if event.get("event") == names.VALIDATED]
        measured = {str(one.get("set") or ""): (int(one["step"]), float(one["loss"])) for one in validated}
        last = self._recent[-1] if self._recent else {}
        losses = [loss for _, loss in self._losses.points]
        if last:
            losses[-1:] = [float(last["loss"])]  # and no mean
        return Facts(
            state=self._state,
            losses=losses,
            speeds=[float(row["tokens_per_second"]) for row in self._recent],
            mfu=last.get("mfu"),
            phases=self._phases(),
            goodput=dict(self._ledger.seconds) if self._ledger is not None else {},
            saved_at=saved[-1] if saved else None,
            validation=measured.pop("", None),
            validation_sets=measured,
            out_of_line=_out_of_line(self._events),
            attempts=0 if self._attempt is None else self._attempt + 1,
        )

    def _phases(self) -> dict[str, float]:
        """Shares of the last steps, rank 0's."""
        sums = dict.fromkeys(PHASES, 0.0)
        for row in self._recent:
            for phase, seconds in (row.get("phases") or {}).items():
                if phase != "init":
                    sums[phase] = sums.get(phase, 0.0) + float(seconds)
        total = sum(sums.values())
        return {phase: seconds / total for phase, seconds in sums.items() if seconds > 0} if total > 0 else {}


def _out_of_line(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ranks that are slower than the others by themselves, as the trainer reported them last."""
    found: dict[Any, dict[str, Any]] = {}
    for event in events:
        if event.get("event") == names.STRAGGLER:
            found[event.get("rank")] = {key: value for key, value in event.items() if key != "event"}
        elif event.get("event") == names.STRAGGLER_OVER:
            found.pop(event.get("rank"), None)
    return list(found.values())


# -- as text ---------------------------------------------------------------------------------------------------------
def lines(facts: Facts, *, width: int = 80, now: float | None = None, blocks: bool = True) -> list[str]:
    """A page of at most `width` columns."""
    now = time.time() if now is None else now
    rows = [("loss", _loss(facts, width, blocks)), ("speed", _speed(facts, width, blocks))]
    rows += [
        ("held out", " · ".join(f"{name} {loss:.3f}" for name, (_, loss) in facts.validation_sets.items())),
        ("phases", _shares(facts.phases, width)),
        ("goodput", _goodput(facts, width)),
        ("saved", _saved(facts, now)),
    ]
    rows += [("ranks", text) for text in _ranks(facts)]
    rows.append(("message", facts.state.message))
    return [
        cut(_head(facts, width, now), width),
        *([cut(_bar(facts, width, blocks), width)] if facts.state.max_steps else []),
        *(cut(f"  {name:<9}{text}", width) for name, text in rows if text),
    ]


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _head(facts: Facts, width: int, now: float) -> str:
    state = facts.state
    parts = [state.state + (f" ({state.reason})" if state.reason else "")]
    if state.attempt is not None:
        parts.append(f"attempt {state.attempt}" + (f" on {state.host}" if state.host else ""))
    if state.queue:
        parts.append(state.queue)
    left = f"{state.run_id}  {' · '.join(parts)}"
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    return f"{left:<{width - len(clock)}}{clock}" if len(left) < width - len(clock) else left


def _bar(facts: Facts, width: int, blocks: bool) -> str:
    state = facts.state
    step = state.step or 0
    most = state.max_steps or 1
    share = min(1.0, step / most)
    shown = f"{count(step)}/{count(most)}" if most >= 100_000 else f"{step}/{most}"
    label = f"  step {shown}  {share:4.0%}"
    if state.eta_seconds is not None:
        label += f"  ETA {duration(state.eta_seconds)}"
    columns = max(10, width - len(label) - 2)
    full, empty = ("━", "─") if blocks else ("#", "-")
    done = round(share * columns)
    return f"  {full * done}{empty * (columns - done)}{label}"


def _loss(facts: Facts, width: int, blocks: bool) -> str:
    if not facts.losses:
        return ""
    end = f"  validation {facts.validation[1]:.3f}" if facts.validation is not None else ""
    now = f"{facts.losses[-1]:<8.3f}"
    return f"{now}{sparkline(facts.losses, width=max(8, width - 11 - len(now) - len(end)), blocks=blocks)}{end}"


def _speed(facts: Facts, width: int, blocks: bool) -> str:
    if not facts.speeds:
        return ""
    mean = sum(facts.speeds) / len(facts.speeds)
    mfu = f"  MFU {facts.mfu:.1%}" if facts.mfu is not None else ""
    unit = " tokens/s"
    drawn = sparkline(facts.speeds, width=max(8, min(30, width - 19 - len(unit) - len(mfu))), blocks=blocks)
    return f"{count(mean):<8}{drawn}{unit}{mfu}"


def _shares(shares: dict[str, float], width: int) -> str:
    """The largest first, as many as fit."""
    parts = [f"{name.replace('_', ' ')} {share:.0%}" for name, share in sorted(shares.items(), key=lambda one: -one[1])]
    while parts and len(" · ".join(parts)) > width - 11:
        parts.pop()
    return " · ".join(parts)


def _goodput(facts: Facts, width: int) -> str:
    ratio = facts.goodput_ratio
    total = sum(facts.goodput.values())
    if ratio is None:
        return ""
    head = f"{ratio:.1%} of {duration(total)}"
    lost = {cause: seconds / total for cause, seconds in facts.goodput.items() if cause != "productive"}
    rest = _shares({cause: share for cause, share in lost.items() if share >= 0.005}, width - len(head) - 7)
    return f"{head}" + (f"; lost: {rest}" if rest else "")


def _saved(facts: Facts, now: float) -> str:
    if facts.state.checkpoint is None:
        return "nothing yet"
    ago = f", {duration(max(0.0, now - facts.saved_at))} ago" if facts.saved_at is not None else ""
    return f"step {facts.state.checkpoint}{ago}" + (f" · {facts.attempts} attempts" if facts.attempts > 1 else "")


def _ranks(facts: Facts) -> list[str]:
    """Those out of line, the slowest first."""
    slow = sorted(facts.out_of_line, key=lambda one: -float(one.get("ratio", 0.0)))
    return [f"! rank {one['rank']} computes {one['ratio']:.2f} times as long as the median" for one in slow[:4]]


# -- screen ---------------------------------------------------------------------------------------------------------
def watch(run: RunDir, *, as_json: bool = False, out: IO[str] | None = None) -> int:
    """Show a run until it ends or Ctrl-C; without a terminal a plain page at intervals, or JSON lines."""
    out = out or sys.stdout
    with Screen(out, changing=1) as screen, contextlib.suppress(KeyboardInterrupt):
        watched = Watched(run)
        while True:
            try:
                facts = watched.refresh()
            except StoreError as error:
                screen.show_error(f"its store does not answer: {error}")
            else:
                over = not facts.state.alive and facts.state.state not in ("pending", "unknown")
                if as_json:
                    print(json_text(facts.to_json(), indent=None), file=out, flush=True)
                else:
                    screen.show(lines(facts, width=screen.width, blocks=can_draw(out)), last=over)
                if over:
                    break
            time.sleep(REFRESH_SECONDS[run.local])
    return EXIT_DONE


def watch_all(page: Callable[[], list[str]], *, out: IO[str] | None = None) -> int:
    """Show a page of all runs again and again until Ctrl-C."""
    with Screen(out or sys.stdout) as screen, contextlib.suppress(KeyboardInterrupt):
        while True:
            screen.show(page())
            time.sleep(ALL_SECONDS)
    return EXIT_DONE


class Screen:
    """A page that is written over where it stands: the cursor moves up, nothing is cleared, so nothing flickers.

    Without a terminal a page is printed when something in it has changed, but for its first `changing` lines.
    """

    def __init__(self, out: IO[str], *, changing: int = 0) -> None:
        self._out = out
        self._changing = changing
        self._live: Any = None
        self._page: list[str] = []
        self._printed_at = float("-inf")

    def __enter__(self) -> Self:
        if self._out.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._out, highlight=False, markup=False)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def width(self) -> int:
        """Columns of a page."""
        if self._live is None:
            return PLAIN_WIDTH
        return max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size().columns)) - 1

    def show(self, page: list[str], *, last: bool = False) -> None:
        """`last`: it is printed in any case."""
        if self._live is not None:
            from rich.text import Text

            self._page = page
            self._live.update(Text("\n").join(_styled(plain(line, self._out)) for line in page), refresh=True)
        elif page[self._changing :] != self._page[self._changing :] and (last or self._is_time()):
            print(plain("\n".join(page), self._out), file=self._out, flush=True)
            self._page = page
            self._printed_at = time.monotonic()

    def _is_time(self) -> bool:
        return time.monotonic() - self._printed_at >= PLAIN_SECONDS

    def show_error(self, message: str) -> None:
        """Below the last page; nothing without a terminal."""
        if self._live is not None:
            page = self._page
            self.show([*page, cut(f"  ! {message}", self.width)])
            self._page = page


def _styled(line: str) -> Any:
    """A line with a little colour, for progress and for problems."""
    from rich.text import Text

    text = Text.from_ansi(line, no_wrap=True, overflow="crop")
    text.highlight_regex(r"━+", "green")
    text.highlight_regex(r"─+", "bright_black")
    text.highlight_regex(r"^  (loss|speed|held out|phases|goodput|saved|ranks|message) ", "bright_black")
    text.highlight_regex(r"! .*", "yellow")
    return text
