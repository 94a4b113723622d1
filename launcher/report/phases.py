"""Where the time of each attempt went, by phase: of a step, of all, and over its ranks. Reads run directories only.

Rank 0 has a row for each step; of the others there is what each of them wrote at its clean end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain

from launchyard.launcher.format import duration, table
from launchyard.launcher.report.history import Story
from launchyard.launcher.report.steps import PhaseSeconds
from launchyard.run import layout
from launchyard.run.events import FINISHED
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.telemetry.phases import PHASES

RANKS_AT_ONCE = 16  # files of ranks that are read at a time
ONCE = ("init",)  # phases that no step has a part of


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of rank 0 in one phase, and of a step: its mean, median, 95th percentile and maximum over all steps."""

    phase: str
    seconds: float
    share: float
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None
    ranks: Mapping[int, float] = field(default_factory=dict)  # seconds of each

    def spread(self) -> tuple[tuple[float, int], tuple[float, int]] | None:
        """The least and the most seconds, each with its rank; None where less than two are known."""
        found = [(seconds, rank) for rank, seconds in self.ranks.items()]
        return (min(found), max(found)) if len(found) > 1 else None


@dataclass(frozen=True)
class AttemptPhases:
    """whole: it ended by itself; else nothing is known of the time since its last row."""

    attempt: int
    steps: int
    seconds: float
    whole: bool
    phases: tuple[PhaseTime, ...]

    def to_json(self) -> JsonObject:
        return asdict(self)


def read_phases(run: RunDir) -> Iterator[AttemptPhases]:
    """Of each attempt that has finished a step, oldest first."""
    for attempt in run.attempts():
        seconds = PhaseSeconds()
        for row in run.attempt_rows(layout.STEPS, attempt):
            seconds.add(row.get("phases") or {})
        if seconds.count:
            yield phases_of(attempt, [Recorded(seconds, run.events(attempt))], ranks=read_rank_phases(run, attempt))


def story_phases(story: Story) -> Iterator[AttemptPhases]:
    """The same of a run that is read already."""
    for one in story.attempts:
        if one.steps.count:
            part = Recorded(one.steps.phases, one.events)
            yield phases_of(one.attempt, [part], ranks=read_rank_phases(story.run, one.attempt))


def read_rank_phases(run: RunDir, attempt: int) -> dict[int, Mapping[str, float]]:
    """Seconds by phase, of each rank that has written them."""
    folder = layout.phases_folder(attempt)
    names = [f"{folder}/{name}" for name in run.listdir(folder) if layout.is_json(name)]
    with ThreadPoolExecutor(RANKS_AT_ONCE) as pool:
        found = [record for record in pool.map(run.find_json, names) if record is not None]
    return {record["rank"]: record["seconds"] for record in found if _is_record(record)}


def _is_record(record: JsonObject) -> bool:
    return isinstance(record.get("rank"), int) and isinstance(record.get("seconds"), dict)


@dataclass(frozen=True)
class Recorded:
    """What rank 0 has left of one attempt."""

    steps: PhaseSeconds
    events: Sequence[JsonObject]

    @property
    def finished(self) -> Mapping[str, float] | None:
        """Seconds by phase of all of it; None if it did not end by itself."""
        ends = [event.get("seconds") for event in self.events if event.get("event") == FINISHED]
        return ends[-1] if ends and isinstance(ends[-1], dict) else None

    def total(self, phase: str) -> float:
        if self.finished is not None:
            return float(self.finished.get(phase, 0.0))
        return self.steps.total(phase)


def phases_of(attempt: int, parts: Sequence[Recorded], *, ranks: Mapping[int, Mapping[str, float]]) -> AttemptPhases:
    """parts: that attempt, or several as one."""
    totals = {phase: sum(part.total(phase) for part in parts) for phase in PHASES}
    steps = [part.steps for part in parts]
    seconds = sum(totals.values())
    phases = [
        _of_phase(phase, spent, seconds, steps, {rank: of.get(phase, 0.0) for rank, of in ranks.items()})
        for phase, spent in sorted(totals.items(), key=lambda item: -item[1])
        if spent
    ]
    whole = all(part.finished is not None for part in parts)
    return AttemptPhases(attempt, sum(part.count for part in steps), round(seconds, 3), whole, tuple(phases))


def _of_phase(
    phase: str, seconds: float, whole: float, steps: Sequence[PhaseSeconds], ranks: Mapping[int, float]
) -> PhaseTime:
    share = round(seconds / whole, 4) if whole else 0.0
    if phase in ONCE or not any(part.count for part in steps):
        return PhaseTime(phase, round(seconds, 3), share, ranks=ranks)
    columns = [one.ordered(phase) for one in steps]
    each = columns[0] if len(columns) == 1 else sorted(chain.from_iterable(columns))
    return PhaseTime(
        phase,
        round(seconds, 3),
        share,
        mean=round(math.fsum(each) / len(each), 6),
        p50=_percentile(each, 0.5),
        p95=_percentile(each, 0.95),
        max=each[-1],
        ranks=ranks,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The least of them that is no less than this share of them."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# -- as text ---------------------------------------------------------------------------------------------------------
def phase_lines(found: AttemptPhases) -> Iterator[str]:
    """A line on the attempt, and its table."""
    since = "" if found.whole else ", without what came after its last step"
    yield f"attempt {found.attempt}: {found.steps} steps, {duration(found.seconds)} of rank 0{since}"
    head, rows = phase_table(found)
    yield from table(rows, head)


def phase_table(found: AttemptPhases) -> tuple[list[str], list[list[str]]]:
    """Head and rows; milliseconds of a step."""
    spreads = [one.spread() for one in found.phases]
    head = ["PHASE", "SECONDS", "SHARE", "MS A STEP", "P50", "P95", "MAX"]
    head += ["LEAST", "RANK", "MOST", "RANK"] if any(spreads) else []
    rows = []
    for one, spread in zip(found.phases, spreads, strict=True):
        row = [one.phase, f"{one.seconds:.2f}", f"{one.share:.1%}", *map(_ms, (one.mean, one.p50, one.p95, one.max))]
        for seconds, rank in spread or ():
            row += [f"{seconds:.2f}", str(rank)]
        rows.append(row + ["-"] * (len(head) - len(row)))
    return head, rows


# -- on a page -------------------------------------------------------------------------------------------------------
def page_phases(story: Story) -> JsonObject | None:
    """Of all attempts as one; over the ranks, if there is one attempt only."""
    parts = [Recorded(one.steps.phases, one.events) for one in story.attempts]
    if not any(part.steps.count for part in parts):
        return None
    last = story.attempts[-1].attempt
    found = phases_of(last, parts, ranks=read_rank_phases(story.run, last) if len(parts) == 1 else {})
    head, cells = phase_table(found)
    said = f"Time of rank 0 in {found.steps:,} steps, {duration(found.seconds)}; what a step took in milliseconds."
    return {"said": said, "head": [word.lower() for word in head], "rows": cells, "numbers": range(1, len(head))}


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
