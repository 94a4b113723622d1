"""Times of day and night as schedulers write them."""

from __future__ import annotations

import re


def seconds_of(text: str) -> int | None:
    """Seconds of [D-]HH:MM:SS, HH:MM:SS, MM:SS or plain minutes as schedulers read them; None if it is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return int(text) * 60 if text.isdigit() else None
