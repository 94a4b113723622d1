"""Runs in words: a line of progress, the last page of a run, and what to type next. Reads run directories only."""

from __future__ import annotations

import sys
from typing import IO, Any

from launcher.cause import first_line
from launcher.chart import draw
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


def progress_words(state: RunState) -> str:
    """`step 120/400 · loss 4.321 · 12.3k tokens/s · ETA 1m 20s`, as far as known."""
    from launcher.summary import count

    words = []
    if state.step is not None:
        words.append(f"step {state.step}" + (f"/{state.max_steps}" if state.max_steps else ""))
    if state.loss is not None:
        words.append(f"loss {state.loss:.3f}")
    if state.tokens_per_second is not None:
        words.append(f"{count(state.tokens_per_second)} tokens/s")
    if state.eta_seconds is not None:
        words.append(f"ETA {duration(state.eta_seconds)}")
    return " · ".join(words)


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


def loss_chart(run: RunDir, *, out: IO[str] = sys.stdout) -> list[str]:
    """The training loss of the surviving history."""
    points = [(float(row["step"]), float(row["loss"])) for row in run.rows("steps")]
    lines = draw(points, braille=can_draw(out))
    return ["loss (nats a token) over steps", *lines] if lines else []


def last_page(run: RunDir, record: OutcomeRecord, *, out: IO[str] = sys.stdout) -> list[str]:
    """What is said when a run has ended."""
    facts = RunFacts(run)
    lines = [_headline(run, record), ""]
    if record.outcome == "failed":
        lines[1:] = [f"  log  {log_of(run, record)}"]
    else:
        chart = loss_chart(run, out=out)
        lines += [f"  {line}" for line in chart] + [""] * bool(chart)
        lines += _leavings(run)
    return [*lines, *next_commands(run, record, facts.run_id)]


def _headline(run: RunDir, record: OutcomeRecord) -> str:
    words = [f"{record.step} steps" if record.step is not None else ""]
    attempts = run.attempts()
    if attempts:
        words.append(f"in {duration(sum(_seconds(run, attempt) for attempt in attempts))}")
    if len(attempts) > 1:
        words.append(f"{len(attempts)} attempts")
    rows, validated = list(run.rows("steps")), list(run.rows("validation"))
    if rows:
        words.append(f"loss {rows[-1]['loss']:.4f}")
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
    """How long an attempt took, as far as it is known."""
    record = run.outcome(attempt)
    return max(0.0, record.time - run.job(attempt).created) if record is not None else 0.0


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


def next_commands(run: RunDir, record: OutcomeRecord, run_id: str) -> list[str]:
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


def facts_of_end(run: RunDir, record: OutcomeRecord) -> dict[str, Any]:
    return {**record.model_dump(mode="json"), "run_url": run.url, "log": log_of(run, record)}
