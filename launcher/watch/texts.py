"""Texts that a model writes, for people: a bar with rate and time left on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from launchyard.launcher.format import count, duration, plain
from launchyard.launcher.watch.transfer import PLAIN_SECONDS

# Called with the texts that are done, and the tokens of all so far.
OnTexts = Callable[[int, int], None]


@contextmanager
def texts_bar(total: int, out: IO[str]) -> Iterator[OnTexts]:
    """Gives what is to be called as texts are done; a bar only where no text comes between its lines."""
    if not out.isatty() or sys.stdout.isatty():
        yield plain_texts(total, out)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("write"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(file=out)
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("", total=total)

        def report(done: int, tokens: int) -> None:
            rate = count(tokens / max(time.monotonic() - began, 1e-9))
            progress.update(task, completed=done, description=f"{rate} tokens/s")

        yield report


def plain_texts(total: int, out: IO[str], clock: Callable[[], float] = time.monotonic) -> OnTexts:
    """Nothing is said of what is over before the first line is due."""
    began = clock()
    due = began + PLAIN_SECONDS

    def report(done: int, tokens: int) -> None:
        nonlocal due
        now = clock()
        if now < due:
            return
        due = now + PLAIN_SECONDS
        seconds = now - began
        eta = f"  ETA {duration((total - done) * seconds / done)}" if done else ""
        line = f"write: {done} of {total} ({done / total:.0%})  {count(tokens / seconds)} tokens/s{eta}"
        print(plain(line, out), file=out, flush=True)

    return report
