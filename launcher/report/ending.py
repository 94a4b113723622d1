"""The last page of a run: headline, curve, files, and the next commands. Reads run directories only."""

from __future__ import annotations

import sys
from typing import IO

from launchyard.launcher.format import duration, first_line, table
from launchyard.launcher.report.metric_tables import loss_of
from launchyard.launcher.report.steps import Steps, read_steps
from launchyard.launcher.report.terminal_chart import loss_chart
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.logs import log_of
from launchyard.run import layout
from launchyard.run.lease import last_heartbeat
from launchyard.run.records import OutcomeRecord
from launchyard.run.rows import is_of_set, sets_of
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact

_SAMPLE_CHARACTERS = 1000


def last_page(run: RunDir, record: OutcomeRecord, *, out: IO[str] = sys.stdout) -> list[str]:
    """The lines that are shown when a run has ended."""
    steps = read_steps(run.rows(layout.STEPS))
    lines = [_headline(run, record, steps), ""]
    if record.outcome == "failed":
        lines[1:] = [f"  log  {log_of(run, record)}"]
    else:
        chart = loss_chart(steps.curves["loss"].points, of=loss_of(steps.last), out=out)
        lines += [f"  {line}" for line in chart] + [""] * bool(chart)
        lines += _leavings(run)
    return [*lines, *_next_commands(record, RunFacts(run).run_id)]


def _headline(run: RunDir, record: OutcomeRecord, steps: Steps) -> str:
    parts = [f"{record.step} steps" if record.step is not None else ""]
    attempts = run.attempts()
    if attempts:
        parts.append(f"in {duration(sum(_seconds(run, attempt) for attempt in attempts))}")
    if len(attempts) > 1:
        parts.append(f"{len(attempts)} attempts")
    validated = list(run.rows(layout.VALIDATION))
    of_main = [row for row in validated if is_of_set(row)]
    if steps.count:
        parts.append(f"loss {steps.last['loss']:.4f}")
    if of_main:
        parts.append(f"validation loss {of_main[-1]['loss']:.4f} at step {of_main[-1]['step']}")
    parts += [f"{name} {_last_of(validated, name):.4f}" for name in sets_of(validated)]
    summary = " · ".join(part for part in parts if part)
    if record.outcome == "failed":
        return f"✗ failed     {first_line(record.message)} ({summary})"
    if record.outcome == "stopped":
        result = f"saved at step {record.step}" if record.checkpoint else record.message
        return f"✓ stopped    {result} ({record.reason}) · {summary}"
    return f"✓ completed  {summary}"


def _last_of(validated: list[JsonObject], name: str) -> float:
    return float([row for row in validated if is_of_set(row, name)][-1]["loss"])


def _seconds(run: RunDir, attempt: int) -> float:
    """Seconds of an attempt: to its outcome, or to the last heartbeat of its owner."""
    record = run.outcome(attempt)
    ended = last_heartbeat(run, attempt) if record is None else record.time
    return max(0.0, ended - run.job(attempt).created)


def _leavings(run: RunDir) -> list[str]:
    """Sample, curve and weights, as far as they are there."""
    lines = []
    if run.exists(layout.SAMPLE):
        sample = run.read_text(layout.SAMPLE).rstrip()[:_SAMPLE_CHARACTERS]
        lines += ["  sample", *(f"    {line}" for line in sample.splitlines()), ""]
    for name, label in ((layout.LOSS_CURVE, "curve"), (layout.WEIGHTS, "weights")):
        if run.exists(name):
            lines.append(f"  {label:<8} {redact(run.path(name))}")
    return [*lines, ""] if lines else lines


def _next_commands(record: OutcomeRecord, run_id: str) -> list[str]:
    """The next commands, ready to be copied."""
    commands: list[tuple[str, str]]
    if record.outcome == "completed":
        commands = [
            (f'launch generate {run_id} --prompt "The "', "let it write"),
            (f"launch metrics {run_id}", "the numbers"),
            (f"launch checkpoints {run_id} --verify", "what was saved"),
            (f"launch resume {run_id} train.max_steps=…", "train longer"),
        ]
    elif record.outcome == "stopped":
        commands = [(f"launch resume {run_id}", "go on"), (f"launch status {run_id}", "where it stands")]
    else:
        commands = [
            (f"launch why {run_id}", "the cause"),
            (f"launch logs {run_id}", "all logs"),
            (f"launch resume {run_id}", "try again from the last checkpoint"),
        ]
    return [f"  {line}" for line in table(commands)]
