"""The progress of a download, as a line for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO

import click

from launchyard.launcher.format import duration, size
from launchyard.launcher.hub.download import DownloadProgress

BAR_CELLS = 24


def download_line(stream: IO[str], *, every: float = 5.0) -> Callable[[DownloadProgress], None]:
    """Returns a callback: one line with a bar, rewritten, on a terminal; else a line now and then."""
    live = stream.isatty()
    reported_at = time.monotonic()

    def report(now: DownloadProgress) -> None:
        nonlocal reported_at
        last = now.done >= now.total
        if time.monotonic() - reported_at < (0.2 if live else every) and not (live and last):
            return
        reported_at = time.monotonic()
        click.echo(f"\r{_bar(now)} {_line(now)}\x1b[K" if live else _line(now), file=stream, nl=not live or last)

    return report


def _bar(now: DownloadProgress) -> str:
    full = BAR_CELLS * now.done // now.total if now.total else BAR_CELLS
    return f"[{'=' * full}{' ' * (BAR_CELLS - full)}]"


def _line(now: DownloadProgress) -> str:
    share = now.done / now.total if now.total else 1.0
    rate = now.fetched / now.seconds if now.seconds else 0.0
    eta = duration((now.total - now.done) / rate) if rate else "?"
    return f"{share:6.1%}  {size(now.done)} of {size(now.total)}  {size(rate)}/s  ETA {eta}  {now.path}"
