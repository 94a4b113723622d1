"""The dashboard of all runs: their number, their states, and those that need attention."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import dashboard

from launchyard.launcher.monitor.dashboards.panels import (
    AMBER,
    GREEN,
    LIVE,
    RATE,
    RED,
    RUN,
    board,
    figure,
    lines,
    query_variable,
    rows_of,
    to_dashboard,
    with_rows,
)

# Of the row that was clicked, with the time range that is looked at.
OF_RUN = (
    "/d/launchyard-run?${__url_time_range}&var-datasource=${datasource}"
    "&var-cluster=${__data.fields.cluster}&var-run_id=${__data.fields.run_id}"
)


def fleet_dashboard() -> dashboard.Dashboard:
    found = board(
        "launchyard-fleet",
        "launchyard / fleet",
        "All runs that launch monitor sees: which are live, how they do, which one needs a look.",
        query_variable("cluster", "Cluster", "label_values(launcher_run_state, cluster)"),
        query_variable("run_id", "Run", 'label_values(launcher_run_state{cluster=~"$cluster"}, run_id)'),
    )
    found = found.link(to_dashboard("Run", "launchyard-run", "cluster", "run_id"))
    return with_rows(
        found, [("Now", now()), ("Runs", runs()), ("Over time", over_time()), ("Monitoring itself", itself())]
    )


def now() -> list[Any]:
    live = f'launcher_run_state{{{RUN},state=~"starting|running|saving"}}'
    return [
        figure("Live runs", "As many as you have launched.", (f"sum({live})", "")),
        figure(
            "Waiting",
            "Few: they wait for nodes. The table says for how long.",
            (f'sum(launcher_run_state{{{RUN},state="pending"}})', ""),
        ),
        figure("Workers", "All that you pay for.", (f"sum(launcher_run_workers{{{RUN}}})", "")),
        figure("Tokens per second", "Flat.", (f"sum(rate(trainer_tokens_total{{{RUN}}}[{RATE}]))", "")),
        figure(
            "Mean goodput",
            "Above 95 %.",
            (f"avg(max by (run_id) (trainer_goodput_ratio{{{RUN}}}))", ""),
            unit="percentunit",
            steps=((None, RED), (0.8, AMBER), (0.95, GREEN)),
        ),
        figure(
            "Most work at risk",
            "About an interval between two saves.",
            (f"max(launcher_run_unsaved_seconds{{{RUN}}})", ""),
            unit="s",
        ),
    ]


def runs() -> list[Any]:
    def of(expr: str, *, by: str = "cluster, run_id") -> str:
        return f"max by ({by}) ({expr})"

    steps = f"{of(f'trainer_step{{{RUN}}}')}"
    columns = [
        (f"{of(f'launcher_run_state{{{RUN}}}', by='cluster, run_id, state')} == 1", "", "short"),
        (f"{steps} / {of(f'trainer_target_steps{{{RUN}}}')}", "Progress", "percentunit"),
        (of(f"trainer_loss{{{RUN}}}"), "Loss", "short"),
        (f"sum by (cluster, run_id) (rate(trainer_tokens_total{{{RUN}}}[{RATE}]))", "Tokens/s", "short"),
        (of(f"trainer_mfu_ratio{{{RUN}}}"), "MFU", "percentunit"),
        (of(f"trainer_goodput_ratio{{{RUN}}}"), "Goodput", "percentunit"),
        (of(f"launcher_run_unsaved_seconds{{{RUN}}}"), "At risk", "s"),
        (f"sum by (cluster, run_id) (launcher_run_attempts_total{{{RUN}}})", "Ended attempts", "short"),
        (of(f"launcher_queue_wait_seconds{{{RUN}}}"), "Queue wait", "s"),
        (of(f"launcher_run_workers{{{RUN}}}"), "Workers", "short"),
    ]
    return [
        rows_of(
            "Runs",
            "Every row `running`, with a goodput above 95 % and little at risk. A click opens the run's dashboard.",
            columns,
            link=OF_RUN,
        ),
        rows_of(
            "Alerts",
            "Only Watchdog, which always fires: without it, alerting itself is down. Runbooks: docs/guides/alerts.md.",
            [("max by (alertname, severity, alertstate, cluster, run_id) (ALERTS)", "", "short")],
            link=OF_RUN,
            height=6,
        ),
    ]


def over_time() -> list[Any]:
    return [
        lines("Loss", "Each falls.", (f"max by (run_id) (trainer_loss{{{RUN}}})", "{{run_id}}")),
        lines(
            "Tokens per second",
            "Each flat.",
            (f"sum by (run_id) (rate(trainer_tokens_total{{{RUN}}}[{RATE}]))", "{{run_id}}"),
            low=0,
        ),
        lines(
            "Goodput",
            "Each above 95 %.",
            (f"max by (run_id) (trainer_goodput_ratio{{{RUN}}})", "{{run_id}}"),
            unit="percentunit",
            low=0,
            high=1,
        ),
        lines(
            "Attempts that have ended",
            "`preempted` may grow; `failed`, `hung` and `lost` may not.",
            (f"sum by (result) (launcher_run_attempts_total{{{RUN}}})", "{{result}}"),
            span=12,
            low=0,
        ),
        lines(
            "Wait for nodes",
            "What you know of your clusters.",
            (f"max by (run_id) (launcher_queue_wait_seconds{{{RUN}}})", "{{run_id}}"),
            unit="s",
            span=12,
            low=0,
        ),
    ]


def itself() -> list[Any]:
    return [
        figure(
            "Last look at the runs",
            "Below 30 s.",
            ("time() - max(launcher_monitor_last_look_timestamp_seconds)", ""),
            unit="s",
            span=6,
            steps=((None, GREEN), (60, AMBER), (120, RED)),
        ),
        figure(
            "A look takes",
            "Below the interval between looks (5 s); more means many runs in a slow store.",
            ("max(launcher_monitor_look_seconds)", ""),
            unit="s",
            span=6,
        ),
        figure(
            "Looks that failed, last hour",
            "Zero: every run can be read.",
            ("sum(increase(launcher_monitor_errors_total[1h]))", ""),
            span=6,
            steps=((None, GREEN), (1, AMBER), (100, RED)),
        ),
        figure(
            "Targets that answer",
            "All of them.",
            (f"sum(up{{{LIVE}}})", "answer"),
            ("sum(launcher_run_targets)", "known"),
            span=6,
        ),
    ]
