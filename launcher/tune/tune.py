"""`launch tune`: which micro-batch fits and which learning rate trains, found by trying the recipe itself here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from launchyard.launcher.format import count, size
from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.trial.child import TrialLimits
from launchyard.launcher.trial.trial import (
    NOWHERE,
    TrialOutcome,
    TrialPlace,
    TrialVerdict,
    allowed_memory,
    run_trial,
    trial_place,
)
from launchyard.launcher.tune.range_test import RatePoint, Suggestion, diverged_at, suggest
from launchyard.launcher.tune.sizes import search_largest, sizes_of
from launchyard.storage.damage import JsonObject
from launchyard.training.batching import shares_of
from launchyard.training.trial.spec import Trial

TIMED_STEPS = 3  # behind a first one, which allocates and compiles; the best of them counts
SHARE_OF_MEMORY = 0.9  # of a CPU for the micro-batches: later steps may take somewhat more than the first ones
MOST_MICRO_BATCHES = 4  # in each of them: enough that the update hardly counts


@dataclass(frozen=True)
class TuneRequest:
    """The arguments of the command line. memory: bytes of a CPU that all workers may take together."""

    recipe: str
    cluster: str
    overrides: JsonObject
    sizes: bool = True
    rates: bool = True
    n_steps: int = 100
    lr_range: tuple[float, float] = (1e-6, 1.0)
    seconds: float = 600.0
    memory: int | None = None


@dataclass(frozen=True)
class TriedSize:
    """planned and peak: bytes of one worker at its peak; the first of tensors alone."""

    micro_batch_size: int
    verdict: TrialVerdict
    planned: int | None = None
    peak: int | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None

    @property
    def fits(self) -> bool:
        return self.verdict == "fits"


@dataclass(frozen=True)
class Tuned:
    """What was found. share: sequences of one worker, which no micro-batch exceeds."""

    plan: Plan
    share: int
    sizes: Sequence[TriedSize] = ()
    rates: Sequence[RatePoint] = ()
    suggestion: Suggestion | None = None
    trouble: str = ""  # why the range test ended before its last step, but for a loss that diverged
    overrides: JsonObject = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """All that was asked for was found."""
        has_rate = self.suggestion is None or self.suggestion.lr is not None
        return bool(self.overrides) and has_rate and not self.trouble

    @property
    def largest(self) -> TriedSize | None:
        return max((one for one in self.sizes if one.fits), key=lambda one: one.micro_batch_size, default=None)

    @property
    def fastest(self) -> TriedSize | None:
        return max((one for one in self.sizes if one.fits), key=lambda one: one.tokens_per_second or 0.0, default=None)


def tune(request: TuneRequest, report: Callable[[str], None]) -> Tuned:
    """Try it. UserError for mistakes, before anything is started; nothing is left of the trials."""
    place = trial_place(request.recipe, cluster=request.cluster, overrides=request.overrides, command="launch tune")
    # The recipe's own size is what is looked for: it need not divide a batch that is given here.
    ready = place.ready({"train.micro_batch_size": None} if request.sizes else {}, NOWHERE)
    plan = ready.plan
    workers = plan.world_size // shares_of(ready.loaded.recipe.parallel)
    tried = _Tried(place, plan, ready.loaded.recipe.train.global_batch_size // workers, workers, request, report)
    return tried.all()


@dataclass
class _Tried:
    """The trials of one command, one after another."""

    place: TrialPlace
    plan: Plan
    share: int
    workers: int  # that take a share of a batch each
    request: TuneRequest
    report: Callable[[str], None]
    sizes: list[TriedSize] = field(default_factory=list)

    def all(self) -> Tuned:
        found = Tuned(self.plan, self.share)
        overrides: JsonObject = {}
        if self.request.sizes:
            for _ in search_largest(sizes_of(self.share), self._try_size):
                pass
            found = Tuned(self.plan, self.share, self.sizes)
            if found.fastest is None:
                return found
            overrides = {"train.micro_batch_size": found.fastest.micro_batch_size}
        if not self.request.rates:
            return Tuned(self.plan, self.share, self.sizes, overrides=overrides)
        return self._try_rates(overrides)

    def _limits(self, share: float = 1.0) -> TrialLimits:
        on_cpu = self.plan.device == "cpu"
        return TrialLimits(self.request.seconds, int(share * allowed_memory(self.request.memory)) if on_cpu else None)

    def _trial(self, limits: TrialLimits, n_steps: int, lr_range: tuple[float, float] | None = None) -> Trial:
        each = None if limits.memory is None else max(1, limits.memory // self.plan.nproc_per_node)
        return Trial(n_steps=n_steps, lr_range=lr_range, memory_bytes=each)

    # -- micro-batches -----------------------------------------------------------------------------------------------
    def _try_size(self, micro: int) -> TrialVerdict:
        n_micro = min(self.share // micro, MOST_MICRO_BATCHES)
        if (seconds := self._expected(micro * n_micro)) > self.request.seconds:
            self.sizes.append(TriedSize(micro, "too slow"))
            self.report(f"  {'micro':<8} {micro}: not tried, its steps would take about {seconds:.0f} s")
            return "too slow"
        limits = self._limits(SHARE_OF_MEMORY)
        changes = {
            "train.micro_batch_size": micro,
            "train.global_batch_size": micro * n_micro * self.workers,
        }
        outcome = run_trial(self.place, changes, self._trial(limits, 1 + TIMED_STEPS), limits=limits)
        tried = _measured(micro, outcome)
        self.sizes.append(tried)
        self.report(f"{'✓' if tried.fits else '✗'} {'micro':<8} {size_line(tried)}")
        return tried.verdict

    def _expected(self, sequences: int) -> float:
        """Seconds of all steps of a trial that reads so many sequences in each, by those before it."""
        done = [one for one in self.sizes if one.step_seconds is not None]
        if not done or done[-1].step_seconds is None:
            return 0.0
        last = done[-1].micro_batch_size
        read = last * min(self.share // last, MOST_MICRO_BATCHES)
        return (1 + TIMED_STEPS) * done[-1].step_seconds * sequences / read

    # -- learning rates ----------------------------------------------------------------------------------------------
    def _try_rates(self, overrides: JsonObject) -> Tuned:
        limits = self._limits()
        n_steps = self.request.n_steps
        outcome = run_trial(
            self.place,
            overrides,
            self._trial(limits, n_steps, self.request.lr_range),
            limits=limits,
            enough=_Watcher(n_steps, self.report),
        )
        points = [(float(row["lr"]), float(row["loss"])) for row in outcome.rows]
        if outcome.nonfinite:
            points.append((self._next_rate(len(points)), float("nan")))
        suggestion = suggest(points)
        if suggestion.lr is not None:
            overrides = {**overrides, "optimizer.lr": float(f"{suggestion.lr:.2g}")}
        return Tuned(
            self.plan,
            self.share,
            self.sizes,
            points,
            suggestion,
            _trouble(outcome, n_steps),
            overrides,
        )

    def _next_rate(self, step: int) -> float:
        trial = Trial(n_steps=self.request.n_steps, lr_range=self.request.lr_range)
        return trial.lr(step) or 0.0


class _Watcher:
    """Looks at the rows of a range test: tells how far it is, and ends it where the loss has left its best."""

    def __init__(self, n_steps: int, report: Callable[[str], None]) -> None:
        self._n_steps = n_steps
        self._report = report
        self._told = 0

    def __call__(self, rows: Sequence[Mapping[str, float]]) -> bool:
        if len(rows) >= self._told + max(1, self._n_steps // 5):
            self._told = len(rows)
            last = rows[-1]
            self._report(
                f"  {'lr':<8} step {len(rows)}/{self._n_steps} · lr {last['lr']:.2g} · loss {last['loss']:.3f}"
            )
        return diverged_at([float(row["loss"]) for row in rows]) is not None


def _trouble(outcome: TrialOutcome, n_steps: int) -> str:
    advice = {
        "no memory": "it ran out of memory; try a smaller train.micro_batch_size",
        "too slow": "its time was over; --timeout gives it longer",
    }
    found = advice.get(outcome.verdict)
    return f"the range test made {len(outcome.rows)} of {n_steps} steps: {found}" if found else ""


def _measured(micro: int, outcome: TrialOutcome) -> TriedSize:
    planned = outcome.plan.memory["total"]
    timed = outcome.rows[1:]
    if outcome.verdict != "fits" or not timed:
        return TriedSize(micro, outcome.verdict, planned, outcome.peak)
    best = max(
        timed, key=lambda row: float(row["tokens_per_second"])
    )  # other work on the machine only slows steps down
    return TriedSize(micro, "fits", planned, outcome.peak, best["tokens_per_second"], best["step_seconds"])


def size_line(tried: TriedSize) -> str:
    parts = [f"{tried.micro_batch_size}: {tried.verdict}"]
    if tried.tokens_per_second is not None:
        parts.append(f"{count(tried.tokens_per_second)} tokens/s")
    if tried.peak is not None:
        parts.append(f"{'took' if tried.fits else 'had'} {size(tried.peak)}")
    if tried.planned is not None:
        parts.append(f"planned {size(tried.planned)}")
    return " · ".join(parts)
