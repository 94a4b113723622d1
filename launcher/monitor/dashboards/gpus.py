"""The row of one run that joins its ranks with what NVIDIA's DCGM exporter says of their GPUs, by the UUID of each."""

from __future__ import annotations

from typing import Any

from launchyard.launcher.monitor.dashboards.panels import NODE, RUN, lines

NONE = "no DCGM exporter is scraped, or no rank is on one of its GPUs"
RANKS = f'max by (rank, node, UUID) (trainer_rank_info{{{NODE},UUID!=""}})'
LABEL = "rank {{rank}} on {{node}}"


def of_gpu(series: str) -> str:
    """A series of DCGM, by rank: several ranks may be on one GPU, and one GPU may be scraped twice."""
    return f"{RANKS} * on (UUID) group_left () max by (UUID) ({series})"


def gpus() -> list[Any]:
    panels = [
        lines(
            "GPU busy",
            "Near 100 % for every rank. It only says that something ran: MFU says how much was done.",
            (of_gpu("DCGM_FI_DEV_GPU_UTIL"), LABEL),
            unit="percent",
            low=0,
            high=100,
        ),
        lines(
            "Tensor cores active",
            "Above 40 %, and as flat as MFU. Absent where the exporter does not collect profiling metrics.",
            (of_gpu("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), LABEL),
            unit="percentunit",
            low=0,
            high=1,
        ),
        lines(
            "Memory of the GPU in use",
            "Flat, and no more than what this run holds: another process shows here, and nowhere else.",
            (of_gpu("DCGM_FI_DEV_FB_USED"), LABEL),
            unit="mbytes",
            low=0,
        ),
        lines(
            "Power",
            "All ranks alike, near the limit of the card. One far below the others waits, or is throttled.",
            (of_gpu("DCGM_FI_DEV_POWER_USAGE"), LABEL),
            unit="watt",
            low=0,
        ),
        lines(
            "Temperature",
            "All alike and below 80 °C. A GPU that is hotter than its neighbours computes slower.",
            (of_gpu("DCGM_FI_DEV_GPU_TEMP"), LABEL),
            unit="celsius",
        ),
        lines(
            "Last XID error",
            "Zero. Any other number is the driver's word for a fault: look it up, and drain the node.",
            (of_gpu("DCGM_FI_DEV_XID_ERRORS"), LABEL),
            low=0,
        ),
        lines(
            "Ranks and their GPUs",
            "Each rank once, on a GPU of its own.",
            (f"count by (rank, local_rank, node, UUID) (trainer_rank_info{{{RUN}}})", "rank {{rank}}: {{UUID}}"),
            span=24,
            low=0,
        ),
    ]
    return [panel.no_value(NONE) for panel in panels]
