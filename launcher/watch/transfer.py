"""What takes long, for people: a bar with rate and time left on a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from launchyard.launcher.format import count, duration, plain, size

PLAIN_SECONDS = 5.0
# Called with the bytes that are done, and with those of all.
OnBytes = Callable[[int, int], None]
# The same of something that has a name.
OnCounts = Callable[[str, int, int], None]


@contextmanager
def transfer_bar(title: str, out: IO[str]) -> Iterator[OnBytes]:
    """Gives what is to be called as the bytes go; nothing of the bar stays on the terminal."""
    if not out.isatty():
        yield _plain_lines(title, out)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=out), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def count_bars(out: IO[str]) -> Iterator[OnCounts]:
    """The same for things that are counted, a bar for each name."""
    if not out.isatty():
        lines: dict[str, OnBytes] = {}

        def report(name: str, done: int, total: int) -> None:
            lines.setdefault(name, _plain_lines(name, out, amount=count))(done, total)

        yield report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=out), transient=True) as progress:
        tasks = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield update


def _plain_lines(
    title: str,
    out: IO[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    amount: Callable[[float], str] = size,
) -> OnBytes:
    """Nothing is said of what is over before the first line is due."""
    began = clock()
    due = began + PLAIN_SECONDS

    def report(done: int, total: int) -> None:
        nonlocal due
        now = clock()
        if now < due or not total:
            return
        due = now + PLAIN_SECONDS
        rate = done / (now - began)
        eta = f"  ETA {duration((total - done) / rate)}" if rate else ""
        line = f"{title}: {amount(done)} of {amount(total)} ({done / total:.0%})  {amount(rate)}/s{eta}"
        print(plain(line, out), file=out, flush=True)

    return report
