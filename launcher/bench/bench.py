"""`launch bench`: how fast a recipe is on this machine, and what would make it faster, found by trying one change at a
time beside the recipe as it is. Nothing is left of the trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launchyard.errors import LaunchError, RecipeErrors, UserError
from launchyard.launcher.bench.alternatives import Alternative, Subject, alternatives, short_steps
from launchyard.launcher.bench.calibrate import CALIBRATION_SECONDS, calibrate, can_calibrate, find_calibration
from launchyard.launcher.bench.figures import WARM_STEPS, Figures, figures_of
from launchyard.launcher.bench.kinds import CHANGED_KINDS
from launchyard.launcher.format import count, duration, first_line
from launchyard.launcher.recipe.load import parse_overrides
from launchyard.launcher.trial.child import TrialLimits
from launchyard.launcher.trial.trial import (
    NOWHERE,
    TrialOutcome,
    TrialPlace,
    allowed_memory,
    run_trial,
    trial_place,
)
from launchyard.storage.damage import JsonObject
from launchyard.training.trial.spec import Trial

BUSY = 0.25  # of the machine: more, and a second of the clock says little of a second of work
LOOK_SECONDS = 0.5
NOTICEABLE = 1.03  # times as fast; less may be noise
AS_IT_IS = "recipe as it is"


@dataclass(frozen=True)
class BenchRequest:
    """The arguments of the command line. wanted: of CHANGED_KINDS, and KEY=VALUE; empty for all kinds."""

    recipe: str
    cluster: str
    overrides: JsonObject
    wanted: Sequence[str] = ()
    n_steps: int = 5
    max_seconds: float = 600.0
    alone: bool = False
    anew: bool = False  # the calibration of this machine


@dataclass(frozen=True)
class Tried:
    """ratio: of its speed to that of the recipe just before and after it. why: there are no figures."""

    alternative: Alternative
    figures: Figures | None = None
    ratio: float | None = None
    why: str = ""


@dataclass
class Benched:
    """What was measured; of the recipe as it is over all its trials."""

    subject: Subject
    own: Figures | None = None
    tried: list[Tried] = field(default_factory=list)
    why: str = ""  # there are no figures of the recipe itself
    interrupted: bool = False
    by_cpu: bool = False  # changes are compared by CPU seconds

    @property
    def best(self) -> Tried | None:
        """The fastest that is noticeably faster."""
        faster = [one for one in self.tried if (one.ratio or 0.0) >= NOTICEABLE]
        return max(faster, key=lambda one: one.ratio or 0.0, default=None)


def bench(request: BenchRequest, report: Callable[[str], None]) -> Benched:
    """Try it. UserError for mistakes, before anything is started. Ctrl-C ends the trials, and what there is is kept."""
    place = trial_place(request.recipe, cluster=request.cluster, overrides=request.overrides, command="launch bench")
    ready = place.ready({}, NOWHERE)
    subject = Subject(ready.loaded.recipe, ready.plan, ready.host)
    if subject.plan.nnodes > 1:
        raise UserError(f"resources.nodes: {subject.plan.nnodes}, and launch bench tries this machine alone; use 1")
    found = alternatives(subject, [word for word in request.wanted if "=" not in word] or _kinds(request))
    found += [Alternative("own", word, parse_overrides([word])) for word in request.wanted if "=" in word]
    subject = _calibrated(request, place, subject, report)
    busy = _in_use() if subject.plan.device == "cpu" else 0.0
    if busy > BUSY:
        report(f"! {'note':<8} other work takes {busy:.0%} of this machine: changes are compared by CPU seconds")
    return _Trials(place, subject, request, report, busy > BUSY).all(found)


def _calibrated(request: BenchRequest, place: TrialPlace, subject: Subject, report: Callable[[str], None]) -> Subject:
    """The same with a plan that knows this machine, as one worker with its threads."""
    if not can_calibrate(subject) or (find_calibration(subject) is not None and not request.anew):
        return subject
    report(f"  {'calibrate':<8} this machine, once: about {CALIBRATION_SECONDS} s if it does nothing else")
    calibrate(subject, seconds=request.max_seconds)
    ready = place.ready({}, NOWHERE)
    return Subject(ready.loaded.recipe, ready.plan, ready.host)


def _in_use() -> float:
    """Share of the machine's CPUs that other work takes now."""
    import psutil

    return float(psutil.cpu_percent(interval=LOOK_SECONDS)) / 100


def _kinds(request: BenchRequest) -> list[str]:
    return [] if request.wanted or request.alone else list(CHANGED_KINDS)


@dataclass
class _Trials:
    """The trials of one command, one after another: the recipe as it is before and after each alternative."""

    place: TrialPlace
    subject: Subject
    request: BenchRequest
    report: Callable[[str], None]
    by_cpu: bool
    began: float = field(default_factory=time.monotonic)
    own: list[TrialOutcome] = field(default_factory=list)

    def all(self, found: Sequence[Alternative]) -> Benched:
        benched = Benched(self.subject, by_cpu=self.by_cpu)
        try:
            self._try_all(benched, found)
        except KeyboardInterrupt:
            benched.interrupted = True
        benched.own = figures_of(self.own)
        return benched

    def _try_all(self, benched: Benched, found: Sequence[Alternative]) -> None:
        benched.why = self._try_own()
        if benched.why:
            return
        took = time.monotonic() - self.began
        if found:
            limit = duration(self.request.max_seconds)
            needed = duration(2 * took * len(found))
            self.report(f"  {'to try':<8} {len(found)} changes, about {needed}; it ends after {limit} (--max-time)")
        for one in found:
            benched.tried.append(self._beside(one, 2 * took))
        winners = _winners(benched.tried)
        if len(winners) > 1:
            changes: JsonObject = {}
            for each in winners:
                changes |= each.alternative.changes
            together = Alternative("together", "these together", changes)
            benched.tried.append(self._beside(together, 2 * took))

    def _beside(self, one: Alternative, expected: float) -> Tried:
        """It, and the recipe as it is again behind it."""
        if self._left() < expected:
            return Tried(one, why="no time was left for it; see --max-time")
        try:
            outcome = self._attempt(one.changes)
        except (LaunchError, UserError, RecipeErrors) as error:
            return self._failed(one, first_line(str(error)))
        figures = figures_of([outcome])
        if figures is None:
            return self._failed(one, _without_figures(outcome))
        before = figures_of(self.own[-1:])
        self._try_own()
        after = figures_of(self.own[-1:])
        assert before is not None and after is not None
        ratio = 2 * self._speed(figures) / (self._speed(before) + self._speed(after))
        self.report(f"✓ {'tried':<8} {one.title}: {count(figures.tokens_per_second.median)} tokens/s, × {ratio:.2f}")
        return Tried(one, figures, ratio)

    def _speed(self, figures: Figures) -> float:
        by_clock = figures.tokens_per_second.median
        return (figures.tokens_per_cpu_second or by_clock) if self.by_cpu else by_clock

    def _failed(self, one: Alternative, why: str) -> Tried:
        self.report(f"✗ {'tried':<8} {one.title}: {why}")
        return Tried(one, why=why)

    def _try_own(self) -> str:
        """Why it gave no figures, if it gave none; the second time it counts as disturbed, and the first one stays."""
        outcome = self._attempt({})
        figures = figures_of([outcome])
        if figures is None:
            return _without_figures(outcome)
        self.own.append(outcome)
        self.report(f"✓ {'measured':<8} {AS_IT_IS}: {count(figures.tokens_per_second.median)} tokens/s")
        return ""

    def _attempt(self, changes: JsonObject) -> TrialOutcome:
        on_cpu = self.subject.plan.device == "cpu"
        limits = TrialLimits(max(1.0, self._left()), allowed_memory() if on_cpu else None)
        each = None if limits.memory is None else max(1, limits.memory // self.subject.plan.nproc_per_node)
        trial = Trial(n_steps=WARM_STEPS + self.request.n_steps, counts_tensors=not self.own, memory_bytes=each)
        return run_trial(self.place, short_steps(self.subject, changes), trial, limits=limits)

    def _left(self) -> float:
        return self.request.max_seconds - (time.monotonic() - self.began)


def _winners(tried: Sequence[Tried]) -> list[Tried]:
    """The fastest of each kind, where it is noticeably faster than the recipe as it is."""
    best: dict[str, Tried] = {}
    for one in sorted(tried, key=lambda each: each.ratio or 0.0):
        if (one.ratio or 0.0) >= NOTICEABLE:
            best[one.alternative.title if one.alternative.kind == "own" else one.alternative.kind] = one
    return list(best.values())


def _without_figures(outcome: TrialOutcome) -> str:
    if outcome.nonfinite:
        return "its loss is no number"
    return {
        "no memory": "it does not fit into the memory that is free",
        "too slow": "its time was over; --max-time gives it longer",
    }.get(outcome.verdict, f"it made {len(outcome.rows)} steps alone")
