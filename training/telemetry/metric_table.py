"""The one table of metric names, and the clocks and counters that feed it.

The table is the registry: docs, dashboards and alerts are checked against it. Knows no model and no launcher, and
serves nothing (training/telemetry/exporter.py does). Light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["gauge", "counter", "histogram"]
STATES = ("starting", "training", "validating", "stopping", "finished")
STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SAVE_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
REQUEST_BUCKETS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Metric:
    """One series. `scope` global: one per run, from rank 0, reduced over ranks; rank: every worker its own.

    Workers without a label of their rank are distinguished by their address (`instance`), and are summed.
    `source`: the process that serves it, the trainer's workers or `launch monitor`.
    """

    name: str
    kind: MetricKind
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
    Metric(
        "trainer_rank_info",
        "gauge",
        "Always 1; the labels say which place on its node a rank has, and which GPU, by the UUID that NVIDIA's DCGM "
        "has for it; empty on a CPU.",
        ("rank", "local_rank", "UUID"),
        "rank",
    ),
)
PROGRESS = (
    Metric("trainer_step", "gauge", "Finished optimizer steps."),
    Metric("trainer_target_steps", "gauge", "Optimizer steps of the whole run."),
    Metric("trainer_tokens_seen", "gauge", "Tokens trained on since the first step, over all attempts."),
    Metric("trainer_source_tokens", "gauge", "Of a mixture: those tokens by the source they are of.", ("source",)),
    Metric("trainer_tokens_total", "counter", "Tokens trained on by this attempt."),
    Metric("trainer_labels_total", "counter", "Of them, tokens with a label; of conversations, the answers."),
    Metric("trainer_recomputed_tokens_total", "counter", "Of them, tokens of steps that an attempt before had done."),
    Metric("trainer_last_step_timestamp_seconds", "gauge", "End of the last step (Unix time).", _RANK, "rank"),
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
    Metric(
        "trainer_model_flops_total",
        "counter",
        "Floating point operations of the model, (6N + 12 L d s) a token, of the head at labels alone.",
    ),
    Metric(
        "trainer_peak_flops",
        "gauge",
        "Operations per second that all devices could do; absent if unknown.",
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
# dataset: train or validation; set: which of the held-out data, main or a name of validation.sets.
_HELD_OUT = ("dataset", "set")
LEARNING = (
    Metric("trainer_loss", "gauge", "Training loss of the last step, nats per token; of preferences per pair."),
    Metric("trainer_grad_norm", "gauge", "Global gradient norm of the last step, before clipping."),
    Metric("trainer_part_grad_norm", "gauge", "Of `metrics.grad_norms`: that norm by part of the model.", ("part",)),
    Metric("trainer_group_grad_norm", "gauge", "The same by rule of `optimizer.groups`.", ("group",)),
    Metric("trainer_learning_rate", "gauge", "Learning rate of the last step."),
    Metric("trainer_validation_loss", "gauge", "Loss on held-out data, as trainer_loss.", _HELD_OUT),
    Metric("trainer_validation_perplexity", "gauge", "exp of that loss; of text.", ("set",)),
    Metric("trainer_validation_bpb", "gauge", "Bits per byte: that loss in bits over the bytes of its text.", ("set",)),
    Metric(
        "trainer_task_score", "gauge", "Figure of a task at the checkpoint asked last.", ("task", "metric", "filter")
    ),
    Metric("trainer_own_figure", "gauge", "Figures of the user's own code, by name.", ("figure", *_HELD_OUT)),
    Metric("trainer_reward_chosen", "gauge", "Preferences: mean reward of the better answers.", _HELD_OUT),
    Metric("trainer_reward_rejected", "gauge", "Preferences: mean reward of the worse answers.", _HELD_OUT),
    Metric("trainer_reward_margin", "gauge", "Preferences: mean difference of the two rewards.", _HELD_OUT),
    Metric("trainer_reward_accuracy", "gauge", "Preferences: share of pairs whose better answer wins.", _HELD_OUT),
    Metric("trainer_nonfinite_steps_total", "counter", "Steps whose loss or gradient was not finite."),
    Metric(
        "trainer_skipped_steps_total", "counter", "Steps whose gradient overflowed, and left the weights as they were."
    ),
    Metric("trainer_loss_scale", "gauge", "fp16: what the loss is multiplied by in the next step."),
    Metric("trainer_loss_spikes_total", "counter", "Steps whose loss stood far above those before."),
    Metric("trainer_skipped_updates_total", "counter", "Updates left out or taken back, by the fault.", ("cause",)),
    Metric("trainer_rewinds_total", "counter", "Returns to an earlier state, by the fault.", ("cause",)),
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
    Metric("trainer_data_errors_total", "counter", "Requests for data that failed in the end.", scope="rank"),
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
    Metric("trainer_checkpoint_failures_in_a_row", "gauge", "Saves that have failed since the last that did not."),
    Metric(
        "trainer_checkpoint_save_duration_seconds",
        "histogram",
        "Time of the stages of a save: stage (training waits), upload, commit.",
        ("stage",),
        buckets=SAVE_BUCKETS,
    ),
    Metric("trainer_checkpoint_retries_total", "counter", "Requests about checkpoints that a store failed at first."),
    Metric("trainer_checkpoint_last_success_timestamp_seconds", "gauge", "Time of the last commit (Unix time)."),
    Metric("trainer_checkpoint_size_bytes", "gauge", "Size of the last committed checkpoint."),
    Metric("trainer_checkpoint_restore_duration_seconds", "gauge", "Time it took to load the state at the start."),
    Metric("trainer_restores_total", "counter", "States gone on from, of memory or of disk.", ("source",)),
    Metric("trainer_snapshots_total", "counter", "Copies of the state into the agents' memory."),
    Metric("trainer_snapshot_stall_seconds_total", "counter", "Time for which those held up training."),
    Metric("trainer_snapshot_step", "gauge", "Finished optimizer steps of the newest of them."),
    Metric("trainer_snapshot_copied_step", "gauge", "The same of the newest that other nodes have a copy of."),
)
PREEMPTION = (
    Metric("trainer_preemptions_total", "counter", "Agreed stops by reason.", ("source",)),
    Metric(
        "trainer_preempt_save_duration_seconds", "gauge", "From hearing of a stop to its committed save, the last time."
    ),
    Metric("trainer_preempt_grace_seconds", "gauge", "Time that the agent waits for such a save before it ends all."),
    Metric(
        "trainer_job_left_seconds",
        "gauge",
        "Until the run leaves its job for the time limit, by the clock by which it does; below 0 it should have left.",
    ),
)


def _of_launcher(name: str, kind: MetricKind, text: str, *labels: str) -> Metric:
    return Metric(name, kind, text, labels, source="launcher")


_RUN = ("cluster", "run_id")
_ATTEMPT = (*_RUN, "attempt")
LAUNCHER = (
    _of_launcher("launcher_run_attempts_total", "counter", "Attempts that have ended, by how.", *_RUN, "result"),
    _of_launcher("launcher_queue_wait_seconds", "gauge", "Wait of its newest job for nodes, so far or in all.", *_RUN),
    _of_launcher("launcher_run_state", "gauge", "1 for the state that a run is in.", *_RUN, "state"),
    _of_launcher("launcher_run_workers", "gauge", "Workers of the live attempt that should serve metrics.", *_RUN),
    _of_launcher("launcher_run_targets", "gauge", "Workers of it that are known to, and are to be scraped.", *_RUN),
    _of_launcher("launcher_run_checkpoint_step", "gauge", "Step of the newest committed checkpoint.", *_RUN),
    _of_launcher(
        "launcher_run_failures_since_checkpoint",
        "gauge",
        "Failed attempts in a row since the last checkpoint, or since somebody resumed it.",
        *_RUN,
    ),
    _of_launcher("launcher_run_acknowledged", "gauge", "1 if somebody knows that it has failed, or is lost.", *_RUN),
    _of_launcher(
        "launcher_run_quiet_seconds",
        "gauge",
        "Since the newest row or event of its live attempt, by the clock of where the run lies.",
        *_ATTEMPT,
    ),
    _of_launcher("launcher_run_quiet_limit_seconds", "gauge", "The most that may be, in what it does now.", *_ATTEMPT),
    _of_launcher("launcher_run_unsaved_seconds", "gauge", "Work that a sudden end would cost.", *_RUN),
    _of_launcher("launcher_run_save_interval_seconds", "gauge", "Between two saves, as the recipe wants it.", *_RUN),
    _of_launcher("launcher_run_notice_seconds", "gauge", "From a warning to the loss of the nodes, as planned.", *_RUN),
    _of_launcher("launcher_monitor_last_look_timestamp_seconds", "gauge", "Time when the monitor last saw all runs."),
    _of_launcher("launcher_monitor_look_seconds", "gauge", "Duration of its last pass over all runs."),
    _of_launcher("launcher_monitor_errors_total", "counter", "Runs and places that could not be read."),
)
METRICS = (
    *IDENTITY, *PROGRESS, *TIME, *LEARNING, *MEMORY, *DATA, *CHECKPOINT, *PREEMPTION, *LAUNCHER,
)  # fmt: skip
