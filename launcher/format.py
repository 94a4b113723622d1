"""Numbers, times and tables as people read them, and facts as programs do. Knows no run and no stream.

Light: a table here is plain text of any width, the same in a terminal, in a pipe and in a file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import IO

# A number with or without a unit: 1,234  0.5  1e-05  12/400  30.2 GB  3m 05s ago. An address (10.0.0.1:80) is not.
_NUMBER = re.compile(r"-?[\d.,]+(e[+-]?\d+)?[ %/\w]*|-|–|-?inf|nan")


JSON_VERSION = 1  # of all that --json prints: greater when a key is removed, or means something else


def json_text(facts: Mapping[str, object] | Sequence[Mapping[str, object]], *, indent: int | None = 1) -> str:
    """Facts as the JSON of --json: each object at the top holds `schema_version`."""
    import json

    if isinstance(facts, Mapping):
        return json.dumps({"schema_version": JSON_VERSION, **facts}, indent=indent)
    return json.dumps([{"schema_version": JSON_VERSION, **one} for one in facts], indent=indent)


def duration(seconds: float) -> str:
    """Seconds as text: 42s, 3m 05s, 2h 07m, 3d 4h."""
    total = int(seconds + 0.5)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86400}d {total % 86400 // 3600}h"


def clock(when: float, *, seconds: bool = True) -> str:
    """Seconds since the epoch as this machine's time, with its distance from UTC: 2026-03-01 12:30:05 +0100."""
    return time.strftime(f"%Y-%m-%d %H:%M{':%S' * seconds} %z", time.localtime(when))


def count(number: float) -> str:
    """1_012_000_000 -> 1.01B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.4g}"


def size(number: float) -> str:
    """Bytes in decimal units: 12_100_000_000 -> 12.1 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f} bytes"


def first_line(text: str, limit: int = 400) -> str:
    """The first line with something in it, at most `limit` characters long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> list[str]:
    """Lines of columns two spaces apart, columns of numbers to the right; never cut, wrapped or coloured."""
    if not rows:
        return ["  ".join(header)] if header else []
    right = [_are_numbers(column) for column in zip(*rows, strict=True)]
    cells = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        for row in cells
    )
    return [line.rstrip() for line in lines]


def _are_numbers(column: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(cell) for cell in column) and any(cell[-1:].strip("-–") for cell in column)


def progress_line(
    *,
    step: int | None,
    max_steps: int | None,
    loss: float | None,
    tokens_per_second: float | None,
    eta_seconds: float | None,
) -> str:
    """`step 120/400 · loss 4.321 · 12.3k tokens/s · ETA 1m 20s`, as far as known."""

    parts = []
    if step is not None:
        parts.append(f"step {step}" + (f"/{max_steps}" if max_steps else ""))
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if tokens_per_second is not None:
        parts.append(f"{count(tokens_per_second)} tokens/s")
    if eta_seconds is not None:
        parts.append(f"ETA {duration(eta_seconds)}")
    return " · ".join(parts)


def can_draw(out: IO[str]) -> bool:
    """Returns True if this stream can show braille and box characters."""
    encoding = (getattr(out, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding.startswith("utf")


def plain(text: str, out: IO[str]) -> str:
    """The text, without characters that the stream cannot show."""
    if can_draw(out):
        return text
    for mark, ascii_mark in (("·", "-"), ("✓", "+"), ("✗", "x"), ("→", "->"), ("…", "..."), ("×", "x")):
        text = text.replace(mark, ascii_mark)
    return text.encode("ascii", "replace").decode()


SIZE = r"^\d+ ?[KMGT]i?B$"  # what bytes_of takes


def bytes_of(size: str) -> int:
    """64GB -> 64 * 10**9, 64GiB -> 64 * 2**30."""
    found = re.fullmatch(r"(\d+) ?([KMGT])(i?)B", size)
    assert found is not None, size
    base = 1024 if found[3] else 1000
    return int(found[1]) * int(base ** ("KMGT".index(found[2]) + 1))
