"""Runs in words: a line of progress, the last page of a run, and what to type next. Reads run directories only."""

from __future__ import annotations

import sys
from typing import IO, Any

from launcher.cause import first_line
from launcher.chart import draw
from launcher.claims import last_heartbeat
from launcher.runs import RunFacts, RunState
from launcher.snapshot import redact
from training.rundir import OutcomeRecord, RunDir

_SAMPLE_CHARACTERS = 1000


def duration(seconds: float) -> str:
    """Seconds in words: 42s, 3m 05s, 2h 07m, 3d 4h."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def progress_line(
    *,
    step: int | None,
    max_steps: int | None,
    loss: float | None,
    tokens_per_second: float | None,
    eta_seconds: float | None,
) -> str:
    """`step 120/400 · loss 4.321 · 12.3k tokens/s · ETA 1m 20s`, as far as known."""
    from launcher.summary import count

    words = []
    if step is not None:
        words.append(f"step {step}" + (f"/{max_steps}" if max_steps else ""))
    if loss is not None:
        words.append(f"loss {loss:.3f}")
    if tokens_per_second is not None:
        words.append(f"{count(tokens_per_second)} tokens/s")
    if eta_seconds is not None:
        words.append(f"ETA {duration(eta_seconds)}")
    return " · ".join(words)


def progress_words(state: RunState) -> str:
    """Where a run stands, in a line."""
    return progress_line(
        step=state.step,
        max_steps=state.max_steps,
        loss=state.loss,
        tokens_per_second=state.tokens_per_second,
        eta_seconds=state.eta_seconds,
    )


def can_draw(out: IO[str]) -> bool:
    """Can this stream show braille and boxes?"""
    encoding = (getattr(out, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding.startswith("utf")


def plain(text: str, out: IO[str]) -> str:
    """The text, without what the stream cannot show."""
    if can_draw(out):
        return text
    for mark, ascii_mark in (("·", "-"), ("✓", "+"), ("✗", "x"), ("→", "->"), ("…", "..."), ("×", "x")):
        text = text.replace(mark, ascii_mark)
    return text.encode("ascii", "replace").decode()


def loss_chart(rows: list[dict[str, Any]], *, out: IO[str] = sys.stdout) -> list[str]:
    """The training loss of these steps; nothing for fewer than two."""
    points = [(float(row["step"]), float(row["loss"])) for row in rows]
    lines = draw(points, braille=can_draw(out))
    return ["loss (nats a token) over steps", *lines] if lines else []


def last_page(run: RunDir, record: OutcomeRecord, *, out: IO[str] = sys.stdout) -> list[str]:
    """What is said when a run has ended."""
    steps = list(run.rows("steps"))
    lines = [_headline(run, record, steps), ""]
    if record.outcome == "failed":
        lines[1:] = [f"  log  {log_of(run, record)}"]
    else:
        chart = loss_chart(steps, out=out)
        lines += [f"  {line}" for line in chart] + [""] * bool(chart)
        lines += _leavings(run)
    return [*lines, *_next_commands(record, RunFacts(run).run_id)]


def _headline(run: RunDir, record: OutcomeRecord, steps: list[dict[str, Any]]) -> str:
    words = [f"{record.step} steps" if record.step is not None else ""]
    attempts = run.attempts()
    if attempts:
        words.append(f"in {duration(sum(_seconds(run, attempt) for attempt in attempts))}")
    if len(attempts) > 1:
        words.append(f"{len(attempts)} attempts")
    validated = list(run.rows("validation"))
    if steps:
        words.append(f"loss {steps[-1]['loss']:.4f}")
    if validated:
        words.append(f"validation loss {validated[-1]['loss']:.4f} at step {validated[-1]['step']}")
    said = " · ".join(word for word in words if word)
    if record.outcome == "failed":
        return f"✗ failed     {first_line(record.message)} ({said})"
    if record.outcome == "stopped":
        kept = f"saved at step {record.step}" if record.checkpoint else record.message
        return f"✓ stopped    {kept} ({record.reason}) · {said}"
    return f"✓ completed  {said}"


def _seconds(run: RunDir, attempt: int) -> float:
    """How long an attempt took: to its outcome, or to the last sign of life of its owner."""
    record = run.outcome(attempt)
    ended = last_heartbeat(run, attempt) if record is None else record.time
    return max(0.0, ended - run.job(attempt).created)


def _leavings(run: RunDir) -> list[str]:
    """Sample, curve and weights, as far as they are there."""
    lines = []
    if run.exists("sample.txt"):
        sample = run.read_text("sample.txt").rstrip()[:_SAMPLE_CHARACTERS]
        lines += ["  sample", *(f"    {line}" for line in sample.splitlines()), ""]
    for name, label in (("loss.svg", "curve"), ("weights", "weights")):
        if run.exists(name):
            lines.append(f"  {label:<8} {redact(run.path(name))}")
    return [*lines, ""] if lines else lines


def _next_commands(record: OutcomeRecord, run_id: str) -> list[str]:
    """What to type next, ready to be copied."""
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
    width = max(len(command) for command, _ in commands)
    return [f"  {command:<{width}}   {said}" for command, said in commands]


def log_of(run: RunDir, record: OutcomeRecord) -> str:
    """The log in which the cause of an end stands."""
    folder = f"{run.attempt_dir(record.attempt)}/logs"
    name = f"rank-{record.rank:05d}.log" if record.rank is not None else "node-0.log"
    return redact(run.path(folder, name if run.exists(f"{folder}/{name}") else ""))
