"""Where the time of each attempt went, by phase: of a step, of all, and over its ranks. Reads run directories only.

Rank 0 has a row for each step; of the others there is what each of them wrote at its clean end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from launchyard.launcher.format import duration, table
from launchyard.launcher.runs.history import Story
from launchyard.run import layout
from launchyard.run.events import FINISHED
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.telemetry.phases import PHASES

READERS = 16  # files of ranks that are read at a time
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
        rows = list(run.attempt_rows(layout.STEPS, attempt))
        if rows:
            yield phases_of(attempt, rows, run.events(attempt), ranks=read_ranks(run, attempt))


def read_ranks(run: RunDir, attempt: int) -> dict[int, Mapping[str, float]]:
    """Seconds by phase, of each rank that has written them."""
    folder = layout.phases_folder(attempt)
    names = [f"{folder}/{name}" for name in run.listdir(folder) if layout.is_json(name)]
    with ThreadPoolExecutor(READERS) as pool:
        found = [record for record in pool.map(run.find_json, names) if record is not None]
    return {record["rank"]: record["seconds"] for record in found if _is_record(record)}


def _is_record(record: JsonObject) -> bool:
    return isinstance(record.get("rank"), int) and isinstance(record.get("seconds"), dict)


def phases_of(
    attempt: int, rows: Sequence[JsonObject], events: Sequence[JsonObject], *, ranks: Mapping[int, Mapping[str, float]]
) -> AttemptPhases:
    """rows, events: of one attempt, or of several as one."""
    finished = [event["seconds"] for event in events if event.get("event") == FINISHED]
    steps = [row.get("phases") or {} for row in rows]
    totals = dict(finished[-1]) if len(finished) == 1 else {}
    for phase in () if totals else PHASES:
        totals[phase] = sum(step.get(phase, 0.0) for step in steps)
    whole = sum(totals.values())
    phases = [
        _of_phase(phase, float(totals[phase]), whole, steps, {rank: of.get(phase, 0.0) for rank, of in ranks.items()})
        for phase in PHASES
        if totals.get(phase)
    ]
    longest_first = sorted(phases, key=lambda one: -one.seconds)
    return AttemptPhases(attempt, len(rows), round(whole, 3), bool(finished), tuple(longest_first))


def _of_phase(
    phase: str, seconds: float, whole: float, steps: Sequence[Mapping[str, float]], ranks: Mapping[int, float]
) -> PhaseTime:
    share = round(seconds / whole, 4) if whole else 0.0
    if phase in ONCE or not steps:
        return PhaseTime(phase, round(seconds, 3), share, ranks=ranks)
    each = sorted(float(step.get(phase, 0.0)) for step in steps)
    return PhaseTime(
        phase,
        round(seconds, 3),
        share,
        mean=round(sum(each) / len(each), 6),
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
    rows = [row for one in story.attempts for row in one.rows]
    if not rows:
        return None
    of_ranks: Mapping[int, Mapping[str, float]] = {}
    if len(story.attempts) == 1:
        of_ranks = read_ranks(story.run, story.attempts[0].attempt)
    events = [event for one in story.attempts for event in one.events]
    found = phases_of(story.attempts[-1].attempt, rows, events, ranks=of_ranks)
    head, cells = phase_table(found)
    said = f"Time of rank 0 in {found.steps:,} steps, {duration(found.seconds)}; what a step took in milliseconds."
    return {"said": said, "head": [word.lower() for word in head], "rows": cells, "numbers": range(1, len(head))}


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
