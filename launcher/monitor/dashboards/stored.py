"""The panels of what a run reads, saves and holds: data, checkpoints, memory."""

from __future__ import annotations

from typing import Any

from launchyard.launcher.monitor.dashboards.panels import NODE, RATE, RUN, figure, lines


def data() -> list[Any]:
    def rate(name: str) -> str:
        return f"sum(rate(trainer_data_{name}_total{{{NODE}}}[{RATE}]))"

    return [
        lines(
            "Requests",
            "No errors; few retries. Nothing at all for data on a local disk.",
            (rate("requests"), "answered"),
            (rate("retries"), "failed at first"),
            (rate("errors"), "given up"),
            unit="reqps",
            low=0,
        ),
        lines(
            "Time of a request",
            "Far below the time in which the chunks before it are read.",
            *(
                (
                    f"histogram_quantile({q}, sum by (le) "
                    f"(rate(trainer_data_request_duration_seconds_bucket{{{NODE}}}[{RATE}])))",
                    label,
                )
                for q, label in ((0.5, "median"), (0.99, "99 of 100"))
            ),
            unit="s",
            low=0,
        ),
        lines(
            "Fetched",
            "Bursts, then silence: chunks come ahead of the steps.",
            (rate("bytes"), "fetched"),
            unit="Bps",
            low=0,
        ),
        lines(
            "Cache of chunks",
            "Each chunk is missed once a node and an epoch, and hit after that. No copy is damaged.",
            (f"sum(increase(trainer_data_cache_hits_total{{{NODE}}}[{RATE}]))", "hits"),
            (f"sum(increase(trainer_data_cache_misses_total{{{NODE}}}[{RATE}]))", "misses"),
            (f"sum(increase(trainer_data_cache_damaged_total{{{NODE}}}[{RATE}]))", "damaged"),
            low=0,
        ),
        lines(
            "Held by the cache",
            "Stays below its quota.",
            (f"max by (node) (trainer_data_cache_bytes{{{NODE}}})", "{{node}}"),
            unit="bytes",
            low=0,
        ),
        lines(
            "Wait of the reader ahead",
            "It may wait; training does so only once it has no batch left (data wait above).",
            (f"sum(rate(trainer_data_chunk_wait_seconds_total{{{NODE}}}[{RATE}]))", "seconds per second"),
            low=0,
        ),
    ]


def checkpoints() -> list[Any]:
    stages = f"trainer_checkpoint_save_duration_seconds_{{}}{{{{{RUN}}}}}"
    took = stages.format("sum")
    saves = stages.format("count")
    return [
        lines(
            "Age of the newest checkpoint",
            "A saw whose teeth are as high as the interval that you wanted.",
            (f"time() - max by (run_id) (trainer_checkpoint_last_success_timestamp_seconds{{{RUN}}})", "{{run_id}}"),
            unit="s",
            low=0,
        ),
        lines(
            "Time of a save",
            "`stage` is what training waits for: below a second. `upload` runs beside it, and ends before the next.",
            (f"sum by (stage) ({took}) / sum by (stage) ({saves})", "{{stage}}"),
            unit="s",
            low=0,
        ),
        lines(
            "Saves",
            "None failed.",
            (f"sum by (kind, result) (trainer_checkpoint_saves_total{{{RUN}}})", "{{kind}} {{result}}"),
            (f"max(trainer_checkpoint_failures_in_a_row{{{RUN}}})", "failed in a row"),
            (f"sum(increase(trainer_checkpoint_retries_total{{{RUN}}}[{RATE}]))", "requests repeated"),
            low=0,
        ),
        figure(
            "Newest committed step",
            "Follows the step closely.",
            (f"max by (run_id) (launcher_run_checkpoint_step{{{RUN}}})", "{{run_id}}"),
            span=8,
        ),
        figure(
            "Size",
            "What you reckoned with.",
            (f"max(trainer_checkpoint_size_bytes{{{RUN}}})", ""),
            unit="bytes",
            span=8,
        ),
        figure(
            "Time to restore",
            "Seconds: it is paid at every resume. Absent before the first.",
            (f"max(trainer_checkpoint_restore_duration_seconds{{{RUN}}})", ""),
            unit="s",
            span=8,
        ),
        *_in_memory(),
    ]


def _in_memory() -> list[object]:
    return [
        figure(
            "Newest step in memory",
            "Follows the step closely: a killed worker goes on from there, and the others after the loss of a node.",
            (f"max by (run_id) (trainer_snapshot_step{{{RUN}}})", "{{run_id}}"),
            (f"max by (run_id) (trainer_snapshot_copied_step{{{RUN}}})", "{{run_id}} copied to another node"),
            span=8,
        ),
        lines(
            "Time that copies in memory take",
            "Below 0.5 % of the steps' time, unless the recipe names the steps.",
            (f"sum(rate(trainer_snapshot_stall_seconds_total{{{RUN}}}[{RATE}]))", "share of the time"),
            unit="percentunit",
            low=0,
        ),
        lines(
            "Copies in memory, and states gone on from",
            "After a killed worker one of memory; of disk after the loss of a node, or a resume.",
            (f"sum(increase(trainer_snapshots_total{{{RUN}}}[{RATE}]))", "copies"),
            (f"sum by (source) (trainer_restores_total{{{RUN}}})", "gone on from {{source}}"),
            low=0,
        ),
    ]


def memory() -> list[Any]:
    def of(name: str) -> str:
        return f"max by (rank, node) (trainer_memory_{name}_bytes{{{NODE}}})"

    return [
        lines(
            "Held by tensors",
            "Flat after the first steps; growth is a leak.",
            (of("allocated"), "rank {{rank}} on {{node}}"),
            unit="bytes",
            low=0,
        ),
        lines(
            "Held by the allocator",
            "Below 95 % of the device. Much more than tensors hold means fragments.",
            (of("reserved"), "rank {{rank}} on {{node}}"),
            unit="bytes",
            low=0,
        ),
        lines(
            "Peak over capacity",
            "Below 95 %: room for a longer batch, or for none.",
            (f"{of('peak')} / {of('capacity')}", "rank {{rank}} on {{node}}"),
            unit="percentunit",
            low=0,
            high=1,
        ),
    ]
