"""The dashboard of one run: now, learning, throughput, time, stragglers, data, checkpoints, memory, attempts."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard

from launchyard.launcher.monitor.dashboards.gpus import gpus
from launchyard.launcher.monitor.dashboards.learning import learning
from launchyard.launcher.monitor.dashboards.panels import (
    AMBER,
    GREEN,
    LIVE,
    NODE,
    RATE,
    RED,
    RUN,
    annotation,
    bars,
    board,
    figure,
    lines,
    query_variable,
    rows_of,
    states,
    to_dashboard,
    with_folded_row,
    with_rows,
)
from launchyard.launcher.monitor.dashboards.stability import stability
from launchyard.launcher.monitor.dashboards.stored import checkpoints, data, memory

MEAN_STEP = (
    f"sum(rate(trainer_step_duration_seconds_sum{{{RUN}}}[{RATE}]))"
    f" / sum(rate(trainer_step_duration_seconds_count{{{RUN}}}[{RATE}]))"
)


def run_dashboard() -> dashboard.Dashboard:
    about = "One run of launchyard: where it stands, how it learns, how fast it is, and where its time goes."
    found = board(
        "launchyard-run",
        "launchyard / run",
        about,
        query_variable("cluster", "Cluster", "label_values(launcher_run_state, cluster)"),
        query_variable("run_id", "Run", 'label_values(launcher_run_state{cluster=~"$cluster"}, run_id)'),
        query_variable("node", "Node", f"label_values(up{{{LIVE},{RUN}}}, node)"),
    )
    for one in annotations():
        found = found.annotation(one)
    parts = [
        ("Now", now()),
        ("Learning", [*learning(), *stability()]),
        ("Throughput", throughput()),
        ("Time", time()),
        ("Ranks", ranks()),
        ("Data", data()),
        ("Checkpoints", checkpoints()),
        ("Memory", memory()),
        ("Attempts and preemptions", attempts()),
    ]
    found = found.link(to_dashboard("All runs", "launchyard-fleet", "cluster"))
    return with_folded_row(with_rows(found, parts), "GPUs, where NVIDIA's DCGM exporter is scraped", gpus())


def annotations() -> list[dashboard.AnnotationQuery]:
    return [
        annotation(
            "Attempts ended",
            f"sum by (run_id, result) (increase(launcher_run_attempts_total{{{RUN}}}[1m])) > 0",
            "red",
        ),
        annotation(
            "Starts",
            # Workers that were not there a minute ago; how long they are "starting" may fall between two scrapes.
            f"max by (run_id, attempt) (trainer_run_info{{{RUN}}}) unless "
            f"max by (run_id, attempt) (trainer_run_info{{{RUN}}} offset 1m)",
            "blue",
        ),
        annotation(
            "Checkpoints",
            f"sum by (run_id) (changes(launcher_run_checkpoint_step{{{RUN}}}[1m])) > 0",
            "green",
        ),
    ]


def now() -> list[Any]:
    return [
        figure(
            "State",
            "`running`. `lost` means that its owner is gone without a word; `launch why` names the cause.",
            (f"max by (state) (launcher_run_state{{{RUN}}}) == 1", "{{state}}"),
            legend_only=True,
        ),
        figure(
            "Progress",
            "Grows steadily to 100 %.",
            (f"max(trainer_step{{{RUN}}}) / max(trainer_target_steps{{{RUN}}})", ""),
            unit="percentunit",
        ),
        figure(
            "Left at this speed",
            "Shrinks as fast as time passes. It does not foresee stops.",
            (f"(max(trainer_target_steps{{{RUN}}}) - max(trainer_step{{{RUN}}})) * {MEAN_STEP}", ""),
            unit="s",
        ),
        figure(
            "Tokens per second",
            "Constant. It falls for a save or a validation only, and briefly.",
            (f"sum(rate(trainer_tokens_total{{{RUN}}}[{RATE}]))", ""),
        ),
        figure(
            "Goodput",
            "Above 95 %: the share of all time since the first submit that was spent on steps the run needed.",
            (f"max(trainer_goodput_ratio{{{RUN}}})", ""),
            unit="percentunit",
            steps=((None, RED), (0.8, AMBER), (0.95, GREEN)),
        ),
        figure(
            "MFU",
            "40 to 60 % on data-centre GPUs: model FLOPs, (6N + 12·L·d·s) a token, over what the devices could do. "
            "Absent where their peak is not known (metrics.peak_flops).",
            (f"avg(trainer_mfu_ratio{{{RUN}}})", ""),
            unit="percentunit",
            steps=((None, RED), (0.2, AMBER), (0.35, GREEN)),
        ),
        *more_of_now(),
    ]


def more_of_now() -> list[Any]:
    return [
        figure(
            "Work at risk",
            "Less than the interval between two saves: what a sudden end would cost now.",
            (f"max(launcher_run_unsaved_seconds{{{RUN}}})", "since the last save"),
            (f"max(launcher_run_save_interval_seconds{{{RUN}}})", "wanted interval"),
            unit="s",
            span=8,
        ),
        figure(
            "Workers",
            "All the same: who should be there, who has said where it listens, who answers.",
            (f"sum(launcher_run_workers{{{RUN}}})", "wanted"),
            (f"sum(launcher_run_targets{{{RUN}}})", "known"),
            (f"sum(up{{{LIVE},{RUN}}})", "answer"),
            (f"max(trainer_world_size{{{RUN}}})", "in the world"),
            span=8,
        ),
        figure(
            "Steps and tokens",
            "All grow; of a mixture, each source by its weight.",
            (f"max(trainer_step{{{RUN}}})", "steps"),
            (f"max(trainer_tokens_seen{{{RUN}}})", "tokens"),
            (f"max by (source) (trainer_source_tokens{{{RUN}}})", "of {{source}}"),
            span=8,
        ),
        rows_of(
            "What it is",
            "The code and the recipe that you meant.",
            [
                (
                    f"max by (run_id, attempt, run_name, recipe, git_sha, backend) (trainer_run_info{{{RUN}}})",
                    "",
                    "short",
                )
            ],
            height=4,
        ),
    ]


def throughput() -> list[Any]:
    return [
        lines(
            "Tokens per second",
            "A flat line. What is recomputed was lost by an end without a save, and should be zero.",
            (f"sum by (run_id) (rate(trainer_tokens_total{{{RUN}}}[{RATE}]))", "{{run_id}}"),
            (f"sum by (run_id) (rate(trainer_labels_total{{{RUN}}}[{RATE}]))", "with a label {{run_id}}"),
            (f"sum by (run_id) (rate(trainer_recomputed_tokens_total{{{RUN}}}[{RATE}]))", "recomputed {{run_id}}"),
            low=0,
        ),
        lines(
            "Step duration",
            "Three lines close together: the slowest steps take hardly longer than the middle one.",
            *(
                (
                    f"histogram_quantile({q}, sum by (le) "
                    f"(rate(trainer_step_duration_seconds_bucket{{{RUN}}}[{RATE}])))",
                    label,
                )
                for q, label in ((0.5, "median"), (0.9, "9 of 10"), (0.99, "99 of 100"))
            ),
            (MEAN_STEP, "mean"),
            unit="s",
            low=0,
        ),
        lines(
            "Model FLOPs",
            "As near to the peak as MFU says; flat.",
            (f"sum by (run_id) (rate(trainer_model_flops_total{{{RUN}}}[{RATE}]))", "done {{run_id}}"),
            (f"max by (run_id) (trainer_peak_flops{{{RUN}}})", "peak {{run_id}}"),
            unit="flops",
            low=0,
        ),
    ]


def time() -> list[Any]:
    phases = f'trainer_phase_seconds_total{{{NODE},phase!="init"}}'
    return [
        lines(
            "What workers do",
            "Nearly all of it forward and backward. Data wait, blocking saves and collective wait are thin lines.",
            (
                f"sum by (phase) (rate({phases}[{RATE}])) / ignoring (phase) group_left () sum(rate({phases}[{RATE}]))",
                "{{phase}}",
            ),
            unit="percentunit",
            span=16,
            stacked=True,
            low=0,
            high=1,
        ),
        bars(
            "Where all time went",
            "`productive` is by far the longest: all time since the first submit, over all attempts, by cause.",
            (f"sum by (cause) (trainer_run_seconds{{{RUN}}})", "{{cause}}"),
            unit="s",
            span=8,
        ),
        lines(
            "Goodput",
            "Above 95 %, and rising between two interruptions.",
            (f"max by (run_id) (trainer_goodput_ratio{{{RUN}}})", "{{run_id}}"),
            unit="percentunit",
            span=12,
            low=0,
            high=1,
        ),
        lines(
            "MFU",
            "A flat line; it falls where something other than the model takes the time.",
            (f"max by (run_id) (trainer_mfu_ratio{{{RUN}}})", "{{run_id}}"),
            unit="percentunit",
            span=12,
            low=0,
        ),
    ]


def ranks() -> list[Any]:
    return [
        lines(
            "Own compute time over the median",
            "Every rank near 1. One that stays above 1.2 holds up all others: look at its node first.",
            (f"max by (rank, node) (trainer_rank_compute_ratio{{{NODE}}})", "rank {{rank}} on {{node}}"),
            span=12,
        ),
        lines(
            "Since the last step",
            "A saw near zero, the same for all. A rank that rises alone hangs; all together wait for one of them.",
            (
                f"time() - max by (rank, node) (trainer_last_step_timestamp_seconds{{{NODE}}})",
                "rank {{rank}} on {{node}}",
            ),
            unit="s",
            span=12,
            low=0,
        ),
    ]


def attempts() -> list[Any]:
    return [
        states(
            "States",
            "Long stretches of `running`, with short gaps.",
            (f"max by (state) (launcher_run_state{{{RUN}}}) == 1", "{{state}}"),
        ),
        lines(
            "Attempts that have ended",
            "`preempted` may grow; `failed`, `hung` and `lost` may not.",
            (f"sum by (result) (launcher_run_attempts_total{{{RUN}}})", "{{result}}"),
            low=0,
        ),
        lines(
            "Failures since the last checkpoint",
            "Zero. Three are a loop, and page.",
            (f"max by (run_id) (launcher_run_failures_since_checkpoint{{{RUN}}})", "{{run_id}}"),
            (f"max by (run_id) (launcher_run_acknowledged{{{RUN}}})", "acknowledged"),
            low=0,
        ),
        lines(
            "Without a sign",
            "Far below its limit, which is that of what the run does: longer while it starts, saves or validates.",
            (f"max(launcher_run_quiet_seconds{{{RUN}}})", "since the newest row or event"),
            (f"max(launcher_run_quiet_limit_seconds{{{RUN}}})", "limit"),
            unit="s",
            low=0,
            log=True,
        ),
        *stops(),
    ]


def stops() -> list[object]:
    """What a scheduler asks for and grants."""
    return [
        lines(
            "Agreed stops",
            "As many as the scheduler wanted; each cost no step.",
            (f"sum by (source) (trainer_preemptions_total{{{RUN}}})", "{{source}}"),
            span=12,
            low=0,
        ),
        lines(
            "Save on a stop",
            "Far below the notice: else a preemption costs a checkpoint interval.",
            (f"max(trainer_preempt_save_duration_seconds{{{RUN}}})", "save"),
            (f"max(launcher_run_notice_seconds{{{RUN}}})", "notice"),
            (f"max(trainer_preempt_grace_seconds{{{RUN}}})", "patience of the agent"),
            unit="s",
            span=12,
            low=0,
            log=True,
        ),
        figure(
            "Wait for nodes",
            "What you know of this cluster's queue.",
            (f"max by (run_id) (launcher_queue_wait_seconds{{{RUN}}})", "{{run_id}}"),
            unit="s",
            span=12,
        ),
        figure(
            "Until the time limit",
            "Longer than a save takes. Absent for a job without a limit.",
            (f"max(trainer_job_left_seconds{{{RUN}}})", ""),
            unit="s",
            span=12,
        ),
    ]
