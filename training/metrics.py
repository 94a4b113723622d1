"""The one table of metric names, and where a worker's numbers go: Prometheus, and rows in the run directory.

The table is the registry: docs, dashboards and alerts are checked against it. Knows no model and no launcher.
Light at module level, so that the docs can be made without torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

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
        "trainer_peak_flops", "gauge", "Floating point operations a second that all devices could do; absent if unknown."
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
    Metric("trainer_job_end_timestamp_seconds", "gauge", "When the job's time is over (Unix time); absent if never."),
)
LAUNCHER = (
    Metric(
        "launcher_run_attempts_total",
        "counter",
        "Attempts of a run that have ended, by how.",
        ("cluster", "run_id", "result"),
        source="launcher",
    ),
    Metric(
        "launcher_queue_wait_seconds",
        "gauge",
        "How long a run's newest job waited, or has been waiting, for its nodes.",
        ("cluster", "run_id"),
        source="launcher",
    ),
    Metric(
        "launcher_run_state",
        "gauge",
        "1 for the state that a run is in.",
        ("cluster", "run_id", "state"),
        source="launcher",
    ),
)
METRICS = (
    *IDENTITY, *PROGRESS, *TIME, *LEARNING, *MEMORY, *DATA, *CHECKPOINT, *PREEMPTION, *LAUNCHER,
)  # fmt: skip

DATA_COUNTERS = (
    ("bytes", "trainer_data_bytes_total"),
    ("hits", "trainer_data_cache_hits_total"),
    ("misses", "trainer_data_cache_misses_total"),
    ("damaged", "trainer_data_cache_damaged_total"),
    ("wait_seconds", "trainer_data_chunk_wait_seconds_total"),
)


class PhaseClock:
    """Wall time by phase. There is always exactly one phase, so the phases sum to the time since the start."""

    def __init__(self, started: float | None = None) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "init", time.monotonic()
        if started is not None:  # the process began before this clock could
            self.seconds["init"] = max(0.0, time.time() - started)

    def enter(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def total(self) -> float:
        self.enter(self._phase)
        return sum(self.seconds.values())


class Exporter:
    """A worker's series on an HTTP endpoint of its own; a port of 0 takes a free one. `url` is where it listens."""

    def __init__(self, *, rank: int, host: str, port: int = 0) -> None:
        import prometheus_client as prom

        prom.disable_created_metrics()
        self._rank = str(rank)
        self._registry = prom.CollectorRegistry()
        kinds = {"gauge": prom.Gauge, "counter": prom.Counter, "histogram": prom.Histogram}
        self._series: dict[str, Any] = {}
        for metric in METRICS:
            if metric.source == "trainer" and (rank == 0 or metric.scope == "rank"):
                extra = {"buckets": metric.buckets} if metric.buckets else {}
                self._series[metric.name] = kinds[metric.kind](
                    metric.name, metric.help, metric.labels, registry=self._registry, **extra
                )
        self._server, self._thread = prom.start_http_server(port, addr=host, registry=self._registry)
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        self._phases_told = dict.fromkeys(PHASES, 0.0)
        self._data_told: dict[str, float] = {}

    def _of(self, name: str, labels: dict[str, str]) -> Any:
        series = self._series.get(name)
        return series.labels(**labels) if series is not None and labels else series

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge; what this rank does not report is passed over."""
        series = self._of(name, labels)
        if series is not None:
            series.set(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        series = self._of(name, labels)
        if series is not None:
            series.inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        series = self._of(name, labels)
        if series is not None:
            series.observe(value)

    def state(self, state: str) -> None:
        for one in STATES:
            self.set("trainer_state", float(one == state), state=one)

    def row(self, row: dict[str, Any], *, tokens: int, flops: float) -> None:
        """The numbers of one finished step."""
        for name, key in (
            ("trainer_step", "step"),
            ("trainer_tokens_seen", "tokens_seen"),
            ("trainer_loss", "loss"),
            ("trainer_grad_norm", "grad_norm"),
            ("trainer_learning_rate", "lr"),
        ):
            self.set(name, row[key])
        self.add("trainer_tokens_total", tokens)
        self.add("trainer_model_flops_total", flops)
        self.observe("trainer_step_duration_seconds", row["step_seconds"])

    def beat(self, clock: PhaseClock) -> None:
        """Rank's own clock, after each step."""
        self.set("trainer_last_step_timestamp_seconds", time.time(), rank=self._rank)
        clock.total()
        for phase, seconds in clock.seconds.items():
            self.add("trainer_phase_seconds_total", seconds - self._phases_told[phase], phase=phase, rank=self._rank)
            self._phases_told[phase] = seconds

    def data(self, counters: Any) -> None:
        """What came through the cache of chunks since the process began; see training/data/cache.py."""
        for name, series in DATA_COUNTERS:
            value = float(getattr(counters, name))
            self.add(series, value - self._data_told.get(name, 0.0))
            self._data_told[name] = value
        self.set("trainer_data_cache_bytes", counters.held)
        self.data_retry(0)  # there from the first step on

    def data_retry(self, times: int = 1) -> None:
        self.add("trainer_data_retries_total", times)

    def memory(self, peak_bytes: int) -> None:
        self.set("trainer_memory_peak_bytes", peak_bytes, rank=self._rank)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class NoExporter:
    """Stands where an Exporter stands when a recipe wants none."""

    url = None

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
