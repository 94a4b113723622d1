"""The decision after an attempt: end, or another one. The only place that decides on restarts; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launchyard.run.records import Outcome

BACK_OFF_CAP = 60.0
UNSTARTED_FACTOR = 10.0  # of the pause after an agent died before its first step: its node may need time
AGAIN_REASONS = ("preempted", "time limit")  # a stop that nobody asked for: the run goes on elsewhere or later
NODE_LOST = "node lost"  # a node was taken without notice
NODE_BAD = "bad node"  # a node on which nothing of the run can be started; the next attempt leaves it out
NODE_SILENT = "node silent"  # nothing is heard of it: frozen, or cut off; it is left out until it is heard again
AGENT_LOST = "agent lost"  # the scheduler ended it, or a person: its node lives
_NOT_OF_THE_RUN = {
    NODE_LOST: "a node was lost, going on at once",
    NODE_BAD: "going on at once without that node",
    NODE_SILENT: "a node fell silent, going on at once without it",
}


@dataclass(frozen=True)
class AttemptSummary:
    """The end of one attempt. `progressed`: it left a state beyond all that there were before, saved or in memory.

    `stepped`: it finished a step.
    """

    attempt: int
    outcome: Outcome
    reason: str
    fatal: bool = False
    progressed: bool = False
    stepped: bool = True


@dataclass(frozen=True)
class Decision:
    action: Literal["end", "again"]
    delay_seconds: float
    why: str


def after_attempt(history: Sequence[AttemptSummary], *, max_failures: int) -> Decision:
    """Decide from the attempts of this job, oldest first. ValueError without any.

    Preempted: again at once, without limit; the same after a node was lost, or was a bad one that is left out from now
    on. Failed: again after 1, 2, 4 … 60 seconds (10, 20 … if the agent died before the first step), until
    `max_failures` attempts in a row have failed without a new checkpoint; at once the first time, if it had made a
    step. Completed, fatal, stopped by a person: end.
    """
    if not history:
        raise ValueError("after_attempt needs at least one attempt")
    last = history[-1]
    if last.outcome == "completed":
        return Decision("end", 0.0, "completed")
    if last.outcome == "stopped":
        if last.reason in AGAIN_REASONS:
            return Decision("again", 0.0, f"{last.reason}: saved, going on at once")
        return Decision("end", 0.0, f"stopped ({last.reason})")
    if last.fatal:
        return Decision("end", 0.0, "another try would only repeat this error")
    return _after_failure(history, max_failures)


def _after_failure(history: Sequence[AttemptSummary], max_failures: int) -> Decision:
    fruitless = fruitless_failures(history)
    if history[-1].reason in _NOT_OF_THE_RUN:
        return Decision("again", 0.0, _NOT_OF_THE_RUN[history[-1].reason])
    if fruitless >= max_failures:
        if max_failures == 0:
            return Decision("end", 0.0, "failed, and resources.max_failures is 0")
        times = "attempt" if fruitless == 1 else "attempts in a row"
        return Decision("end", 0.0, f"{fruitless} {times} failed without a new checkpoint")
    delay = 0.0 if fruitless <= 1 and history[-1].stepped else 2.0 ** max(0, fruitless - 1)
    if history[-1].reason == AGENT_LOST and not history[-1].stepped:
        delay *= UNSTARTED_FACTOR
    delay = min(BACK_OFF_CAP, delay)
    made = "after a new checkpoint" if fruitless == 0 else f"{fruitless} of {max_failures} without a new checkpoint"
    when = f"in {delay:.0f} s" if delay else "at once"
    return Decision("again", delay, f"failed, {made}; trying again {when}")


def fruitless_failures(history: Sequence[AttemptSummary]) -> int:
    """Failures at the end of the history since something was saved; preemptions in between neither count nor clear."""
    count = 0
    for one in reversed(history):
        if one.progressed or one.outcome == "completed":
            break
        count += one.outcome == "failed" and one.reason not in _NOT_OF_THE_RUN
    return count
