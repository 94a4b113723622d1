"""The state of a run by its two witnesses: the answer of its scheduler, and the heartbeat of its owner. Pure.

One table for every place. `trusted` is a scheduler that watches the processes of its jobs and keeps its queue over an
outage; the word of another counts only while the owner's heart beats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# Of a scheduler about one job. gone: it has ended. forgotten: there is no such job. unknown: no answer of its own.
# none: nobody can be asked, and the lease alone decides.
Answer = Literal["queued", "running", "suspended", "ending", "gone", "forgotten", "unknown", "none"]
# none yet: no attempt was claimed since the job was started. outcome: the run's last word was written.
Beat = Literal["none yet", "fresh", "stale", "outcome"]


@dataclass(frozen=True)
class Verdict:
    """`state`: `running` for a run that goes on in any phase, `ended` for one whose outcome tells the rest.

    alive: its owner lives, or will be started. free: another job may take the run. by_lease: the heartbeat alone says
    so. reason: with {title} of the scheduler, {said} by it, {age} of the heartbeat, {job}; empty: the scheduler's own.
    """

    state: Literal["pending", "starting", "running", "suspended", "lost", "unknown", "ended"]
    alive: bool = False
    free: bool = False
    by_lease: bool = False
    reason: str = ""


_PENDING = Verdict("pending", alive=True)
_STARTING = Verdict("starting", alive=True)
_RUNNING = Verdict("running", alive=True)
_SUSPENDED = Verdict("suspended", alive=True)
_ENDING = Verdict("running", alive=True, reason="{title} is ending its job")
_SILENT = Verdict(
    "unknown",
    alive=True,
    reason="{title} says {said}, and its owner has not been heard of for {age}: it hangs, or cannot write to its run",
)
_GHOST = Verdict(
    "lost", free=True, by_lease=True, reason="{title} says {said}, but its owner has not been heard of for {age}"
)
_BY_HEART = Verdict("running", alive=True, by_lease=True)
_STRANGER = Verdict(
    "running", alive=True, by_lease=True, reason="{title} does not know job {job}, but its owner is heard of"
)
_UNKNOWN = Verdict("unknown")
_UNKNOWN_FREE = Verdict("unknown", free=True)
_UNHEARD = Verdict("unknown", free=True, by_lease=True)
_LOST = Verdict("lost", free=True)
_EXPIRED = Verdict("lost", free=True, by_lease=True)
_LEAVING = Verdict("ended", alive=True)
_ENDED = Verdict("ended", free=True)

# Answer of the scheduler -> by heartbeat: none yet, fresh, stale, outcome.
_TABLE: dict[Answer, tuple[Verdict, Verdict, Verdict, Verdict]] = {
    "queued": (_PENDING, _PENDING, _PENDING, _LEAVING),
    "running": (_STARTING, _RUNNING, _SILENT, _LEAVING),
    "suspended": (_SUSPENDED, _SUSPENDED, _SUSPENDED, _LEAVING),
    "ending": (_ENDING, _ENDING, _ENDING, _LEAVING),
    "gone": (_LOST, _LOST, _LOST, _ENDED),
    "forgotten": (_LOST, _STRANGER, _LOST, _ENDED),
    "unknown": (_UNKNOWN, _BY_HEART, _UNHEARD, _ENDED),
    "none": (_EXPIRED, _BY_HEART, _EXPIRED, _ENDED),
}
# The rows that differ for a scheduler that is not trusted: its jobs may be dead, and gone with its head.
_UNTRUSTED: dict[Answer, tuple[Verdict, Verdict, Verdict, Verdict]] = {
    "queued": (_PENDING, _PENDING, _GHOST, _ENDED),
    "running": (_STARTING, _RUNNING, _GHOST, _ENDED),
    "unknown": (_UNKNOWN_FREE, _BY_HEART, _UNHEARD, _ENDED),
}


def judge(answer: Answer, beat: Beat, *, trusted: bool) -> Verdict:
    """Returns the verdict over a run from the two witnesses."""
    rows = _TABLE if trusted else _TABLE | _UNTRUSTED
    return rows[answer][get_args(Beat).index(beat)]
