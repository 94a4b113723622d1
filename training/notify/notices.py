"""Notices of a run's events: each a file that is made once, and marked when it was sent. Knows no webhook."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from launchyard.run import layout
from launchyard.run.rundir import RunDir


class Notice(BaseModel):
    """notices/NAME.json: an event that somebody wants to be told of."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: str = Field(description="end, failure, preempted or threshold.")
    attempt: int | None = Field(default=None, description="Attempt that ended; none of a threshold.")
    state: str = Field(default="running", description="Of the run then.")
    reason: str = Field(default="", description="Reason of an end, in a word or two.")
    message: str = Field(default="", description="The same for people.")
    step: int | None = Field(default=None, description="Finished optimizer steps.")
    metric: str | None = Field(default=None, description="Of a threshold: the figure.")
    value: float | None = Field(default=None, description="And what it was.")
    time: float = Field(default=0.0, description="When it was left.")
    sent: float | None = Field(default=None, description="When it was sent; null until then.")

    @property
    def name(self) -> str:
        return self.event if self.attempt is None else f"{self.event}-{self.attempt:04d}"


def leave_notice(run: RunDir, notice: Notice) -> None:
    """Leaves a notice to be sent; the first of an event counts."""
    with contextlib.suppress(FileExistsError):
        left = notice.model_copy(update={"time": time.time()})
        run.create_json(layout.notice_of(notice.name), left.model_dump())


def unsent(run: RunDir) -> Iterator[Notice]:
    """Oldest first."""
    found = []
    for name in run.listdir(layout.NOTICES):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found.append(run.read_model(f"{layout.NOTICES}/{name}", Notice))
    yield from sorted((one for one in found if one.sent is None), key=lambda one: one.time)


def mark_sent(run: RunDir, notice: Notice) -> None:
    run.write_json(layout.notice_of(notice.name), notice.model_copy(update={"sent": time.time()}).model_dump())
