"""The means to report of a worker from its start, long before it has a model. Light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launchyard.run import layout
from launchyard.run.append import Appender
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.shards import LogEntry
from launchyard.training.distributed import World
from launchyard.training.telemetry.events import Events
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.phases import PhaseClock

OnStep = Callable[[JsonObject], None]  # called with the row of a step


@dataclass(frozen=True)
class Instruments:
    """Its time by phase, its series, and its events; and a listener of each step, if there is one."""

    clock: PhaseClock
    exporter: Exporter
    events: Events
    on_step: OnStep | None = None


@dataclass(frozen=True)
class Rows:
    """The row files of rank 0; None on the other ranks."""

    steps: Appender | None = None
    validations: Appender | None = None
    tasks: Appender | None = None
    samples: Appender | None = None

    @property
    def appenders(self) -> list[Appender]:
        return [rows for rows in (self.steps, self.validations, self.tasks, self.samples) if rows is not None]

    def unwritten(self) -> dict[str, list[str]]:
        """Returns the lines that wait, by the stem of their file."""
        found: dict[str, list[str]] = {}
        for rows in self.appenders:
            found |= rows.unwritten()
        return found

    def entries(self) -> dict[str, LogEntry]:
        """Returns what the manifest of a checkpoint says of these files; those without a line are left out."""
        digests = {rows.name: rows.digest() for rows in self.appenders}
        return {name: LogEntry(lines=lines, xxh3=xxh3) for name, (lines, xxh3) in digests.items() if lines}


def open_rows(run: RunDir, world: World) -> Rows:
    if not world.is_main:
        return Rows()
    every = 0.0 if run.local else 10.0
    kinds = (layout.STEPS, layout.VALIDATION, layout.TASKS, layout.SAMPLES)
    return Rows(*(Appender(run, layout.rows(kind, world.attempt), flush_seconds=every) for kind in kinds))
