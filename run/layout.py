"""Every file and folder of a run directory by name. No other file spells one."""

from __future__ import annotations

LATEST = "checkpoints/latest.json"
WAITING = "submissions/waiting.json"
LOG_PART_BYTES = 1 << 20


def log_part(name: str, part: int) -> str:
    """In a store a log lies in parts of LOG_PART_BYTES; the first has its plain name."""
    return f"{name}.{part:04d}" if part else name
