"""The one table of metric names, and the clocks and counters that feed it.

The table is the registry: docs, dashboards and alerts are checked against it. Knows no model and no launcher, and
serves nothing (training/exporter.py does). Light.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["gauge", "counter", "histogram"]
PHASES = (
    "init",
    "data_wait",
    "forward_backward",
    "collective_wait",
    "optimizer",
    "checkpoint_blocking",
    "validation",
    "other",
)
OF_A_STEP = ("forward_backward", "optimizer", "other")
STATES = ("starting", "training", "validating", "stopping", "finished")
STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SAVE_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
REQUEST_BUCKETS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Metric:
    """One series. `scope` global: one a run, from rank 0, reduced over ranks; rank: every worker its own.

    Workers that are no rank of their own in a label are told apart by their address (`instance`), and are summed.
    `source`: who serves it, the trainer's workers or `launch monitor`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    scope: Literal["global", "rank"] = "global"
    buckets: tuple[float, ...] = ()
    source: Literal["trainer", "launcher"] = "trainer"


_RANK = ("rank",)
IDENTITY = (
    Metric(
        "trainer_run_info",
        "gauge",
        "Always 1; the labels say which run this is.",
        ("run_name", "recipe", "git_sha", "backend"),
    ),
    Metric("trainer_state", "gauge", "1 for the state the trainer is in.", ("state",)),
    Metric("trainer_world_size", "gauge", "Workers of this attempt."),
)
PROGRESS = (
    Metric("trainer_step", "gauge", "Finished optimizer steps."),
    Metric("trainer_target_steps", "gauge", "Optimizer steps of the whole run."),
    Metric("trainer_tokens_seen", "gauge", "Tokens trained on since the first step, over all attempts."),
    Metric("trainer_tokens_total", "counter", "Tokens trained on by this attempt."),
    Metric("trainer_recomputed_tokens_total", "counter", "Of them, tokens of steps that an attempt before had done."),
    Metric("trainer_last_step_timestamp_seconds", "gauge", "When the last step ended (Unix time).", _RANK, "rank"),
)
TIME = (
    Metric("trainer_step_duration_seconds", "histogram", "Wall time of a step.", buckets=STEP_BUCKETS),
    Metric(
        "trainer_phase_seconds_total",
        "counter",
        "Wall time by what it was spent on; the phases exclude each other and sum to the worker's wall time.",
        ("phase", "rank"),
        "rank",
    ),
    Metric("trainer_model_flops_total", "counter", "Floating point operations of the model, (6N + 12 L d s) a token."),
    Metric(
        "trainer_peak_flops",
        "gauge",
        "Operations a second that all devices could do; absent if unknown.",
    ),
    Metric("trainer_mfu_ratio", "gauge", "Model operations of the last step over what the devices could have done."),
    Metric("trainer_goodput_ratio", "gauge", "Productive share of the time since the first submit, over all attempts."),
    Metric("trainer_run_seconds", "gauge", "Time since the first submit by what it went to, all attempts.", ("cause",)),
    Metric(
        "trainer_rank_compute_ratio",
        "gauge",
        "A worker's own compute time over the median of all workers; waiting for others does not count.",
        _RANK,
        "rank",
    ),
)
LEARNING = (
    Metric("trainer_loss", "gauge", "Training loss of the last step, nats a token."),
    Metric("trainer_grad_norm", "gauge", "Global gradient norm of the last step, before clipping."),
    Metric("trainer_learning_rate", "gauge", "Learning rate of the last step."),
    Metric("trainer_validation_loss", "gauge", "Loss on held-out data, nats a token.", ("dataset",)),
    Metric("trainer_nonfinite_steps_total", "counter", "Steps whose loss or gradient was not finite."),
    Metric("trainer_loss_spikes_total", "counter", "Steps whose loss stood far above those before."),
)
MEMORY = (
    Metric("trainer_memory_allocated_bytes", "gauge", "Held by tensors; on a CPU by the process.", _RANK, "rank"),
    Metric("trainer_memory_reserved_bytes", "gauge", "Held by the allocator; on a CPU by the process.", _RANK, "rank"),
    Metric("trainer_memory_peak_bytes", "gauge", "Most that tensors have held; on a CPU the process.", _RANK, "rank"),
    Metric("trainer_memory_capacity_bytes", "gauge", "Memory of the device; on a CPU of the machine.", _RANK, "rank"),
)
DATA = (
    Metric("trainer_data_bytes_total", "counter", "Bytes of chunks fetched from a store.", scope="rank"),
    Metric("trainer_data_requests_total", "counter", "Requests for data that a store has answered.", scope="rank"),
    Metric("trainer_data_retries_total", "counter", "Requests for data that a store failed at first.", scope="rank"),
    Metric("trainer_data_errors_total", "counter", "Requests for data that were given up.", scope="rank"),
    Metric(
        "trainer_data_request_duration_seconds",
        "histogram",
        "Time of a request for data, retries included.",
        scope="rank",
        buckets=REQUEST_BUCKETS,
    ),
    Metric("trainer_data_cache_hits_total", "counter", "Chunks that the node's cache had.", scope="rank"),
    Metric("trainer_data_cache_misses_total", "counter", "Chunks that had to be fetched.", scope="rank"),
    Metric("trainer_data_cache_damaged_total", "counter", "Copies found damaged on this disk.", scope="rank"),
    Metric("trainer_data_cache_bytes", "gauge", "Held by the node's cache when last added to.", scope="rank"),
    Metric("trainer_data_chunk_wait_seconds_total", "counter", "Wait of the thread that reads ahead.", scope="rank"),
)
CHECKPOINT = (
    Metric("trainer_checkpoint_saves_total", "counter", "Saves by kind and result.", ("kind", "result")),
    Metric(
        "trainer_checkpoint_save_duration_seconds",
        "histogram",
        "Time of the stages of a save: stage (training waits), upload, commit.",
        ("stage",),
        buckets=SAVE_BUCKETS,
    ),
    Metric("trainer_checkpoint_retries_total", "counter", "Requests about checkpoints that a store failed at first."),
    Metric("trainer_checkpoint_last_success_timestamp_seconds", "gauge", "When the last commit was made (Unix time)."),
    Metric("trainer_checkpoint_size_bytes", "gauge", "Size of the last committed checkpoint."),
    Metric("trainer_checkpoint_restore_duration_seconds", "gauge", "Time it took to load the state at the start."),
)
PREEMPTION = (
    Metric("trainer_preemptions_total", "counter", "Agreed stops by reason.", ("source",)),
    Metric(
        "trainer_preempt_save_duration_seconds", "gauge", "From hearing of a stop to its committed save, the last time."
    ),
    Metric("trainer_preempt_grace_seconds", "gauge", "How long the agent waits for such a save before it ends all."),
    Metric(
        "trainer_job_end_timestamp_seconds",
        "gauge",
        "When the run leaves its job for its time is over (Unix time).",
    ),
)


def _of_launcher(name: str, kind: Kind, text: str, *labels: str) -> Metric:
    return Metric(name, kind, text, labels, source="launcher")


_RUN = ("cluster", "run_id")
LAUNCHER = (
    _of_launcher("launcher_run_attempts_total", "counter", "Attempts that have ended, by how.", *_RUN, "result"),
    _of_launcher("launcher_queue_wait_seconds", "gauge", "Wait of its newest job for nodes, so far or in all.", *_RUN),
    _of_launcher("launcher_run_state", "gauge", "1 for the state that a run is in.", *_RUN, "state"),
    _of_launcher("launcher_run_workers", "gauge", "Workers of the live attempt that should serve metrics.", *_RUN),
    _of_launcher("launcher_run_targets", "gauge", "Workers of it that are known to, and are to be scraped.", *_RUN),
    _of_launcher("launcher_run_checkpoint_step", "gauge", "Step of the newest committed checkpoint.", *_RUN),
    _of_launcher("launcher_run_unsaved_seconds", "gauge", "Work that a sudden end would cost.", *_RUN),
    _of_launcher("launcher_run_save_interval_seconds", "gauge", "Between two saves, as the recipe wants it.", *_RUN),
    _of_launcher("launcher_run_notice_seconds", "gauge", "From a warning to the loss of the nodes, as planned.", *_RUN),
    _of_launcher("launcher_monitor_last_look_timestamp_seconds", "gauge", "When the monitor last saw all runs."),
    _of_launcher("launcher_monitor_look_seconds", "gauge", "How long its last look took."),
    _of_launcher("launcher_monitor_errors_total", "counter", "Runs and places that could not be read."),
)
METRICS = (
    *IDENTITY, *PROGRESS, *TIME, *LEARNING, *MEMORY, *DATA, *CHECKPOINT, *PREEMPTION, *LAUNCHER,
)  # fmt: skip


class Buckets:
    """A histogram as it grows: how many values lay up to each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one holds what is above all bounds
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Witness(Protocol):
    """Who is told what this worker does; see training/watchdog.py."""

    def enter(self, phase: str, now: float, waiting: bool) -> None: ...
    def beat(self) -> None: ...
    def stepped(self, step: int, seconds: float) -> None: ...


class PhaseClock:
    """Wall time by phase. There is always exactly one phase, so the phases sum to the time since the start."""

    def __init__(self, started: float | None = None, witness: Witness | None = None) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._now = ("init", time.monotonic())  # replaced as one, for other threads
        self.witness = witness
        self._told = dict.fromkeys(PHASES, 0.0)
        if started is not None:  # the process began before this clock could
            self.seconds["init"] = max(0.0, time.time() - started)

    @property
    def phase(self) -> str:
        return self._now[0]

    def enter(self, phase: str, *, waiting: bool = False) -> None:
        """`waiting`: for other ranks, or for the device; whatever is late then, it is not this process."""
        self._switch(phase, waiting or phase == "collective_wait")

    def _switch(self, phase: str, waiting: bool) -> None:
        now = time.monotonic()
        before, since = self._now
        self._now = (phase, now)  # first: another thread may then see too little for a moment, and never too much
        self.seconds[before] += now - since
        if self.witness is not None:
            self.witness.enter(phase, now, waiting)

    def beat(self) -> None:
        """A sign of life from within a long phase."""
        if self.witness is not None:
            self.witness.beat()

    def waits(self) -> Waiting:
        """In a collective: that time of a step is no rank's own. What else is timed as a whole stays so."""
        return Waiting(self)

    def so_far(self) -> dict[str, float]:
        """Seconds by phase until now; for another thread."""
        while True:
            now, seconds = self._now, dict(self.seconds)
            if now is self._now:
                seconds[now[0]] += max(0.0, time.monotonic() - now[1])
                return seconds

    def total(self) -> float:
        self.enter(self.phase)
        return sum(self.seconds.values())

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap of the phases that took any, in whole microseconds that sum to the truth."""
        self.total()
        told, laps = self._told, {}
        for phase, seconds in self.seconds.items():
            if seconds - told[phase] > 1e-6:
                laps[phase] = spent = round(seconds - told[phase], 6)
                told[phase] += spent
        return laps


class Waiting:
    """From entering it to leaving it, a clock knows that its rank waits for others."""

    __slots__ = ("_before", "_clock")

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._before = before = self._clock.phase
        self._clock._switch("collective_wait" if before in OF_A_STEP else before, True)

    def __exit__(self, *_: object) -> None:
        self._clock._switch(self._before, False)


@dataclass(frozen=True)
class Spike:
    """A loss far above those before it, their running mean; the how manieth in a row."""

    loss: float
    usual: float
    in_a_row: int


class SpikeFinder:
    """Tells when a loss stands out: by six times the usual distance from the running mean, and by a tenth of it."""

    KNOWN_AFTER, MEMORY, NEW_USUAL = 20, 0.95, 10

    def __init__(self) -> None:
        self._mean, self._distance, self._seen, self._in_a_row = 0.0, 0.0, 0, 0

    def look(self, loss: float) -> Spike | None:
        above = loss - self._mean
        if self._seen > self.KNOWN_AFTER and above > max(6 * self._distance, 0.1 * abs(self._mean)):
            self._in_a_row += 1
            found = Spike(loss, self._mean, self._in_a_row)
            if self._in_a_row == self.NEW_USUAL:  # it stays there: no spike any more
                self._mean, self._distance, self._seen, self._in_a_row = loss, 0.0, 1, 0
            return found  # not learned from: a spike must not make the next one look usual
        self._seen, self._in_a_row = self._seen + 1, 0
        share = 1 - self.MEMORY if self._seen > 1 else 1.0
        self._mean += share * above
        self._distance += (1 - self.MEMORY) * (abs(above) * (self._seen > 1) - self._distance)
        return None


# Dense operations a second in bf16, of the maker's data sheets; the first name that a device's name holds counts.
PEAK_FLOPS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("H200", 989.4e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("GH200", 989.4e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A10G", 70e12),
    ("A40", 149.7e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("V100", 125e12),
)


def peak_flops(device_name: str) -> float | None:
    """What a device could do at most, operations a second; None of one that is not known."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in device_name.lower()), None)
