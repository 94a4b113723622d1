"""The panels of what a run does about steps that would harm it."""

from __future__ import annotations

from grafana_foundation_sdk.builders import timeseries

from launchyard.launcher.monitor.dashboards.panels import RATE, RUN, lines


def stability() -> list[timeseries.Panel]:
    return [
        lines(
            "Updates left out",
            "Nothing, or single steps far apart. More says that the learning rate is too high or data is bad.",
            (
                f"sum by (run_id, cause) (increase(trainer_skipped_updates_total{{{RUN}}}[{RATE}]))",
                "{{cause}} {{run_id}}",
            ),
            span=12,
            low=0,
        ),
        lines(
            "Rewinds",
            "Nothing: each takes back updates that were made, and recomputes the steps since the last save.",
            (f"sum by (run_id, cause) (increase(trainer_rewinds_total{{{RUN}}}[{RATE}]))", "{{cause}} {{run_id}}"),
            span=12,
            low=0,
        ),
    ]
