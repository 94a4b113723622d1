"""The progress of preparing data, as a line for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launchyard.training.data.prepare.journal import PrepareProgress


def preparing_line(stream: IO[str], *, every: float = 5.0) -> Callable[[PrepareProgress], None]:
    """Returns a callback for the progress of preparing: one line rewritten on a terminal, else a line now and then."""
    live = stream.isatty()
    reported_at = time.monotonic()

    def report(now: PrepareProgress) -> None:
        nonlocal reported_at
        if now.note:
            click.echo(now.note, file=stream)
            return
        last = now.bytes_done >= now.bytes_total
        if time.monotonic() - reported_at < (0.2 if live else every) and not (live and last):
            return
        reported_at = time.monotonic()
        click.echo(f"\r{_rate(now)}\x1b[K" if live else _rate(now), file=stream, nl=not live or last)

    return report


def _rate(now: PrepareProgress) -> str:
    done = now.bytes_done / now.bytes_total if now.bytes_total else 1.0
    per_second = now.tokens / now.seconds if now.seconds else 0.0
    left = now.seconds * (1 - done) / done if done else 0.0
    eta = f"{int(left) // 3600}:{int(left) % 3600 // 60:02}:{int(left) % 60:02}"
    return f"prepare {done:6.1%}  {now.documents:,} documents  {now.tokens:,} tokens  {per_second:,.0f}/s  ETA {eta}"
