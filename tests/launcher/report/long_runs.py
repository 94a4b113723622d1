"""Runs of any length, as their workers would have left them: rows, events, phases of ranks, ends. Trains nothing."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launchyard.run import layout
from launchyard.run.events import FINISHED, SAVED, STARTED, VALIDATED
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from tests.support.small_runs import claim, make_run, write_data

# Between what measures and what is measured: a process begins with the peak of the one that has forked it.
SMALL = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
STEP_SECONDS = 0.5
LOST = 7  # steps that every attempt but the first does again


@dataclass(frozen=True)
class Size:
    """`saves`, `validations`: of all attempts together."""

    steps: int
    attempts: int = 1
    ranks: int = 1
    saves: int = 100
    validations: int = 100
    parts: int = 0  # of the model, with a gradient norm each, once in a thousand steps


def long_run(folder: Path, size: Size) -> RunDir:
    """A finished run. All but its last attempt were preempted."""
    url = str(folder / "run")
    run = make_run(url, write_data(folder / "data"), {"train.max_steps": size.steps})
    each = -(-size.steps // size.attempts)
    now = time.time() - (size.steps + size.attempts * (LOST + 60)) * STEP_SECONDS
    for number in range(size.attempts):
        start = max(0, number * each - LOST * (number > 0))
        stop = min(size.steps, (number + 1) * each)
        attempt = claim(run, size.ranks, {}, created=now)
        began = now + 20 * STEP_SECONDS
        _write(run, layout.grown(layout.rows(layout.STEPS, attempt)), _rows(size, attempt, start, stop, began))
        _write_events(run, size, attempt, start, stop, began)
        now = began + (stop - start) * STEP_SECONDS + 1
        last = number == size.attempts - 1
        ended = OutcomeRecord(
            outcome="completed" if last else "stopped",
            reason="done" if last else "preempted",
            attempt=attempt,
            step=stop,
            time=now,
        )
        run.write_outcome(ended)
        if last:
            run.write_outcome(ended, of_run=True)
        now += 10 * STEP_SECONDS
    for rank in range(size.ranks):
        seconds = {"init": 9.0, "forward_backward": 0.4 * each, "other": 0.1 * each + rank % 7}
        run.write_json(layout.phases(size.attempts - 1, rank), {"rank": rank, "seconds": seconds})
    return run


def _write(run: RunDir, name: str, lines: Iterator[str]) -> None:
    path = Path(run.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(lines)


def _rows(size: Size, attempt: int, start: int, stop: int, began: float) -> Iterator[str]:
    """By hand: json.dumps takes longer than all that is measured of them."""
    noise = random.Random(attempt)
    for step in range(start + 1, stop + 1):
        loss = 2 + 8 * math.exp(-8 * step / size.steps) + noise.random() / 10
        forward = 0.4 + noise.random() / 50
        norms = ""
        if size.parts and step % 1000 == 0:
            of_parts = {f"blocks.{part}": round(loss / (part + 2), 4) for part in range(size.parts)}
            norms = f'"grad_norms": {json.dumps(of_parts)}, '
        yield (
            f'{{"step": {step}, "loss": {loss:.8f}, "grad_norm": {loss / 3:.6f}, {norms}'
            f'"lr": {1e-3 * (1 - step / size.steps):.9f}, "tokens_seen": {192 * step}, "labels": 192, '
            f'"tokens_per_second": {96 / forward:.3f}, "step_seconds": {STEP_SECONDS}, "data_wait_seconds": 0.0012, '
            f'"data_hash": "{step * 2654435761 % 2**64:016x}", '
            f'"phases": {{"data_wait": 0.0012, "forward_backward": {forward:.6f}, "collective_wait": 0.01, '
            f'"optimizer": 0.02, "other": 0.001}}, "attempt": {attempt}, '
            f'"time": {began + (step - start) * STEP_SECONDS:.3f}}}\n'
        )


def _write_events(run: RunDir, size: Size, attempt: int, start: int, stop: int, began: float) -> None:
    save_every = max(1, size.steps // size.saves)
    validate_every = max(1, size.steps // size.validations)

    def at(step: int) -> float:
        return round(began + (step - start) * STEP_SECONDS, 3)

    events = [{"event": STARTED, "time": began, "step": start, "resumed": attempt > 0, "world_size": size.ranks}]
    validations = []
    for step in range(start + 1, stop + 1):
        if step % validate_every == 0:
            loss = 2.1 + 8 * math.exp(-8 * step / size.steps)
            row = {"step": step, "loss": loss, "perplexity": math.exp(loss), "seconds": 0.2}
            validations.append({**row, "attempt": attempt, "time": at(step)})
            events.append({"event": VALIDATED, "time": at(step), "step": step, "loss": loss, "seconds": 0.2})
        if step % save_every == 0 or step == stop:
            events.append({
                "event": SAVED, "time": at(step), "step": step, "kind": "temporary", "seconds": 0.3,
                "stall_seconds": 0.05, "bytes": 1,
            })  # fmt: skip
    spent = {"init": 9.0, "forward_backward": 0.41 * (stop - start), "other": 0.09 * (stop - start)}
    events.append({"event": FINISHED, "time": at(stop), "step": stop, "seconds": spent})
    _write(run, layout.grown(layout.events(attempt)), (json.dumps(event) + "\n" for event in events))
    name = layout.grown(layout.rows(layout.VALIDATION, attempt))
    _write(run, name, (json.dumps(row) + "\n" for row in validations))


@dataclass(frozen=True)
class Cost:
    """Of a process, by the kernel's account."""

    code: int
    cpu_seconds: float
    peak_bytes: int
    errors: str


def cost_of(argv: list[str], env: dict[str, str]) -> Cost:
    done = subprocess.run([sys.executable, "-c", SMALL, *argv], env=env, capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(done.stdout)
    return Cost(code, seconds, peak * (1 if sys.platform == "darwin" else 1024), done.stderr[-2000:])
