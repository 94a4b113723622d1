"""The reports of a worker. Telemetry is the only interface for the loop: it passes each event once, and Telemetry
distributes it. Decides nothing.

Imports torch only for the recorder; the rest must be there before.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from launchyard.model.cost import flops_per_label, flops_per_token
from launchyard.run import events
from launchyard.run.events import SAVED_BEFORE_STOPPING
from launchyard.run.goodput import AttemptFacts
from launchyard.run.layout import CODE
from launchyard.run.records import Target
from launchyard.run.rows import Means, values_of, with_own_figures
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.distributed import World, node_address
from launchyard.training.notify.threshold import ThresholdWatch, open_threshold
from launchyard.training.recipe import Recipe
from launchyard.training.sections.validation import MAIN
from launchyard.training.spec import Workload
from launchyard.training.stop import REASONS
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.instruments import Instruments, Rows

if TYPE_CHECKING:
    from launchyard.training.batching import Context
    from launchyard.training.telemetry.recorder import Recorder, Shown


class Meter:
    """Seconds between one finished step and the next, data wait included, without the work at a boundary."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def lap(self) -> float:
        now = time.perf_counter()
        seconds = now - self._since
        self._since = now
        return seconds


# Figures of a validation of text -> their series. A name may hold no unit but bytes, says promtool.
_OF_TEXT = {"perplexity": "trainer_validation_perplexity", "bits_per_byte": "trainer_validation_bpb"}


@dataclass(frozen=True)
class TokenCounts:
    """Of a step, over all ranks: tokens, labels among them, and tokens since the first step, of each source too."""

    tokens: int
    labels: int
    seen: int
    by_source: Mapping[str, int] = field(default_factory=dict)  # of a mixture, on rank 0


@dataclass(frozen=True)
class GradientNorm:
    """Of a step, before clipping. whole: None of one that was skipped; by_part, by_group: empty where not measured."""

    whole: float | None = None
    by_part: Mapping[str, float] = field(default_factory=dict)
    by_group: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Harm:
    """A step that the guard of training/stability/ has found. usual: the loss before it, once that is known."""

    step: int
    cause: Literal["nonfinite", "spike"]
    loss: float
    grad_norm: float
    data: str
    usual: float | None

    def facts(self) -> dict[str, object]:
        """In words where JSON has no number."""
        sizes = {"loss": self.loss, "grad_norm": self.grad_norm}
        told = {name: round(size, 4) if math.isfinite(size) else str(size) for name, size in sizes.items()}
        usual = {} if self.usual is None else {"usual": round(self.usual, 4)}
        return {"cause": self.cause, **told, **usual, "data": self.data}


class Telemetry:
    """Reports the events of training. `clock` and `recorder` are used by the loop itself, at every step."""

    def __init__(self, world: World, instruments: Instruments, rows: Rows, recorder: Recorder) -> None:
        self._world = world
        self.rows = rows
        self.clock = instruments.clock
        self.exporter = instruments.exporter
        self.events = instruments.events
        self._on_step = instruments.on_step
        self.recorder = recorder
        self.meter = Meter()
        self.threshold: ThresholdWatch | None = None

    def training(self) -> None:
        """From here on it trains, again or for the first time."""
        self.exporter.state("training")

    def step(
        self,
        number: int,
        *,
        means: Mapping[str, float],
        gradient: GradientNorm,
        lr: float,
        counts: TokenCounts,
        waited: float,
        data_hash: int,
    ) -> None:
        """Step 1, 2, 3 … is done; `waited` seconds for its data. means: the loss, and what is measured beside it."""
        seconds = self.meter.lap()
        row = {
            "step": number,
            **with_own_figures(means),
            "grad_norm": gradient.whole,
            **({"grad_norms": dict(gradient.by_part)} if gradient.by_part else {}),
            **({"group_grad_norms": dict(gradient.by_group)} if gradient.by_group else {}),
            "lr": lr,
            "tokens_seen": counts.seen,
            **({"source_tokens": dict(counts.by_source)} if counts.by_source else {}),
            "labels": counts.labels,
            "tokens_per_second": round(counts.tokens / seconds, 1),
            "step_seconds": round(seconds, 6),
            "data_wait_seconds": round(waited, 6),
            "data_hash": f"{data_hash:016x}",
        }
        if self.threshold is not None:
            self.threshold.saw(number, {**row, **means})
        self.recorder.step(row, counts.tokens)
        self._show_figures(means, dataset="train", set="")
        for source, tokens in counts.by_source.items():
            self.exporter.set("trainer_source_tokens", tokens, source=source)
        for part, norm in gradient.by_part.items():
            self.exporter.set("trainer_part_grad_norm", norm, part=part)
        for group, norm in gradient.by_group.items():
            self.exporter.set("trainer_group_grad_norm", norm, group=group)
        if self._on_step is not None:
            with self.meter.paused():
                self._on_step(row)

    def _show_figures(self, means: Mapping[str, float], **labels: str) -> None:
        """Those beside the loss, each a series of its own."""
        for name, value in means.items():
            if name in _OF_TEXT:
                self.exporter.set(_OF_TEXT[name], value, set=labels["set"])
            elif name not in Means.model_fields:
                self.exporter.set("trainer_own_figure", value, figure=name, **labels)
            elif name != "loss":
                self.exporter.set(f"trainer_{name}", value, **labels)

    def scaled(self, loss_scale: float, *, skipped: bool) -> None:
        """The scale of the loss after a step, and whether that step left the weights as they were."""
        self.exporter.set("trainer_loss_scale", loss_scale)
        self.exporter.add("trainer_skipped_steps_total", float(skipped))

    def nonfinite(self, loss: float) -> None:
        self.exporter.add("trainer_nonfinite_steps_total")
        self.exporter.set("trainer_loss", loss)

    def update_skipped(self, harm: Harm) -> None:
        self._harmed(harm)
        self.exporter.add("trainer_skipped_updates_total", cause=harm.cause)
        self.events(events.UPDATE_SKIPPED, step=harm.step, **harm.facts())

    def rewound(self, harm: Harm, *, target: int, checkpoint: int, n_steps: int) -> None:
        """Back at a checkpoint; the state of step `target` follows from it, and the next `n_steps` are passed over."""
        self._harmed(harm)
        self.exporter.add("trainer_rewinds_total", cause=harm.cause)
        self.exporter.add("trainer_skipped_updates_total", n_steps, cause=harm.cause)
        facts = {"checkpoint": checkpoint, "at": harm.step, "n_steps": n_steps, **harm.facts()}
        self.events(events.REWOUND, step=target, **facts)
        self.events.flush(sync=True)

    def _harmed(self, harm: Harm) -> None:
        found = {"nonfinite": "trainer_nonfinite_steps_total", "spike": "trainer_loss_spikes_total"}
        self.exporter.add(found[harm.cause])

    def validating(self, step: int) -> None:
        self.exporter.state("validating")
        self.events(events.VALIDATING, step=step)

    def validated(self, step: int, name: str, *, means: Mapping[str, float], seconds: float) -> None:
        """The figures of one set. name: MAIN of that of data.validation, whose rows and events are without one."""
        of = {} if name == MAIN else {"set": name}
        if self.rows.validations is not None:
            row = {"step": step, **of, **with_own_figures(means), **self._stamp(seconds)}
            self.rows.validations.add(row)
            self.recorder.validated(row)
        if self.threshold is not None and name == MAIN:
            self.threshold.saw(step, {f"validation_{figure}": value for figure, value in means.items()})
        labels = {"dataset": "validation", "set": name}
        self.exporter.set("trainer_validation_loss", means["loss"], **labels)
        self._show_figures(means, **labels)
        self.events(events.VALIDATED, step=step, **of, loss=means["loss"], seconds=seconds)

    def ending_early(self, step: int, why: str) -> None:
        self.events(events.ENDING_EARLY, step=step, message=why)

    def asking_tasks(self, step: int, tasks: Sequence[str]) -> None:
        self.exporter.state("validating")
        self.events(events.ASKING_TASKS, step=step, tasks=list(tasks))

    def tasks_failed(self, step: int, message: str) -> None:
        self.events(events.TASKS_FAILED, step=step, message=message)

    def tasks_done(self, step: int, *, scores: Sequence[JsonObject], weights: str, seconds: float) -> None:
        """The figures of a checkpoint: a row, a series each, an event."""
        assert self.rows.tasks is not None, "rank 0 asks, and has rows"
        row = {"step": step, "scores": scores, "weights": weights, **self._stamp(seconds)}
        self.rows.tasks.add(row)
        self.rows.tasks.flush(sync=True)  # to ask again costs more
        self.recorder.tasks_done(row)
        self.show_scores(scores)
        self.events(events.TASKS_DONE, step=step, scores=values_of(scores), seconds=seconds)

    def show_scores(self, scores: Sequence[JsonObject]) -> None:
        for score in scores:
            labels = {key: str(score[key]) for key in ("task", "metric", "filter")}
            if score["value"] is not None:
                self.exporter.set("trainer_task_score", float(score["value"]), **labels)

    def sampling(self, step: int) -> None:
        self.exporter.state("validating")
        self.events(events.SAMPLING, step=step)

    def not_sampled(self, step: int, message: str) -> None:
        self.events(events.NOT_SAMPLED, step=step, message=message)

    def sampled(self, step: int, *, prompt: str, text: str, seconds: float) -> None:
        assert self.rows.samples is not None, "rank 0 asks, and has rows"
        self.rows.samples.add({"step": step, "prompt": prompt, "text": text, **self._stamp(seconds)})
        self.events(events.SAMPLED, step=step, text=f"{prompt}{text}")

    def _stamp(self, seconds: float) -> dict[str, float]:
        """The end of a row: for how long, by whom, when."""
        return {"seconds": seconds, "attempt": self._world.attempt, "time": time.time()}

    def snapshot_taken(self, step: int, seconds: float, *, copied: int | None) -> None:
        """The state after `step` steps is in memory; that held up training for `seconds`. `copied`: the step that
        other nodes have, too."""
        self.exporter.set("trainer_snapshot_step", step)
        if copied is not None:
            self.exporter.set("trainer_snapshot_copied_step", copied)
        self.exporter.add("trainer_snapshots_total")
        self.exporter.add("trainer_snapshot_stall_seconds_total", seconds)

    def stopping(self, step: int, reason: str) -> None:
        self.events(events.STOPPING, step=step, reason=reason)
        self.exporter.state("stopping")
        self.exporter.add("trainer_preemptions_total", source=reason)

    def saved_before_stopping(self, seconds: float) -> None:
        """`seconds` since the stop request first reached this rank."""
        self.exporter.set("trainer_preempt_save_duration_seconds", seconds)
        self.events(events.SAVED_BEFORE_STOPPING, seconds=round(seconds, 3))

    def finished(self) -> None:
        """No more steps come."""
        self.exporter.state("finished")
        if self.threshold is not None:
            self.threshold.wait()
        self.recorder.close()


def serve_metrics(run: RunDir, world: World, recipe: Recipe) -> Exporter:
    """This rank's Prometheus endpoint, registered in the run directory, if the recipe enables it."""
    exporter = Exporter(rank=world.rank, host=recipe.metrics.host if recipe.metrics.prometheus else None)
    if exporter.url is not None:
        url = exporter.url.replace("//0.0.0.0:", f"//{node_address()}:")
        run.register_target(world.attempt, Target(rank=world.rank, url=url, node=world.host, time=time.time()))
    exporter.state("starting")
    return exporter


def introduce(
    exporter: Exporter, run: RunDir, world: World, recipe: Recipe, workload: Workload, *, max_steps: int
) -> None:
    """Sets the series that identify a run and are known before its first step."""
    backend = run.job(world.attempt).backend if world.attempt in run.attempts() else ""
    named = {"run_name": workload.name, "recipe": recipe.name, "git_sha": git_sha(run), "backend": backend}
    exporter.set("trainer_run_info", 1, **named)
    exporter.set("trainer_world_size", world.world_size)
    exporter.set("trainer_target_steps", max_steps)
    if world.job_end is not None:
        exporter.before_scrapes(partial(_show_time_left, world.job_end))
    if world.grace_seconds is not None:
        exporter.set("trainer_preempt_grace_seconds", world.grace_seconds)
    exporter.set("trainer_checkpoint_failures_in_a_row", 0)
    for kind in ("permanent", "temporary", "best"):
        for result in ("ok", "failed"):
            exporter.count("trainer_checkpoint_saves_total", 0, kind=kind, result=result)
    for reason in REASONS:
        exporter.count("trainer_preemptions_total", 0, source=reason)
    for cause in ("nonfinite", "spike"):
        exporter.count("trainer_skipped_updates_total", 0, cause=cause)
        exporter.count("trainer_rewinds_total", 0, cause=cause)


def _show_time_left(job_end: float, exporter: Exporter) -> None:
    """By this worker's own clock, the one by which it leaves: whoever scrapes has another."""
    exporter.set("trainer_job_left_seconds", job_end - time.time())


def report_past(exporter: Exporter, run: RunDir, before: list[AttemptFacts]) -> None:
    """Reports the ends of earlier attempts, which ended before they could be scraped."""
    for facts in before:
        if facts.outcome is not None and facts.outcome.reason in REASONS:
            exporter.add("trainer_preemptions_total", source=facts.outcome.reason)
        for event in run.events(facts.attempt):
            if event["event"] == SAVED_BEFORE_STOPPING:
                exporter.set("trainer_preempt_save_duration_seconds", float(event["seconds"]))


def open_telemetry(
    run: RunDir, context: Context, instruments: Instruments, rows: Rows, *, cache: Shown | None, start_step: int
) -> Telemetry:
    """With the account of all attempts and the trackers on rank 0."""
    from launchyard.training.telemetry.peak_flops import Flops, peak_of
    from launchyard.training.telemetry.recorder import Account, Recorder
    from launchyard.training.telemetry.trackers.open import Trackers, open_trackers

    world = context.world
    recipe = context.recipe
    workload = context.workload
    introduce(instruments.exporter, run, world, recipe, workload, max_steps=context.max_steps)
    account: Account | None = None
    trackers: Trackers | None = None
    if world.is_main:
        account = Account(run, world.attempt, partial(report_past, instruments.exporter, run))
        trackers = open_trackers(
            run, recipe, workload.run_id, attempt=world.attempt, start_step=start_step, on_event=instruments.events
        )
    of_head = flops_per_label(workload.model, workload.adapter)
    flops = Flops(
        flops_per_token(workload.model, recipe.data.seq_len, workload.adapter) - of_head,
        of_head,
        peak_of(context.device, recipe.metrics.peak_flops, world.world_size),
    )
    recorder = Recorder(
        world,
        instruments,
        device=context.device,
        flops=flops,
        rows=rows.steps,
        account=account,
        trackers=trackers,
        cache=cache,
    )
    telemetry = Telemetry(world, instruments, rows, recorder)
    if world.is_main:
        telemetry.threshold = open_threshold(run, recipe.notify)
    return telemetry


def git_sha(run: RunDir) -> str:
    return str((run.find_json(CODE) or {}).get("git_sha") or "")
