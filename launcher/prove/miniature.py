"""A recipe in miniature, as a check of all its parts before the real run: the same run with a few keys changed, in a
folder of its own that is removed when all went well. Knows no loop and no model.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.format import duration, json_text
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.registry import forget
from launchyard.launcher.submit.launch import Follow, Request, launch
from launchyard.run import layout
from launchyard.run.checkpoints import committed_steps
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import Recipe

FEW_STEPS = 3
NEW_TOKENS = 16  # of the sample
TASK_SAMPLES = 2
# A few steps, one checkpoint and one validation of a batch, both at the end, on this machine; told to nobody.
SMALL: dict[str, object] = {
    "train.max_steps": FEW_STEPS,
    "validation.every_steps": None,
    "validation.every_epochs": None,
    "validation.at_start": False,
    "validation.max_batches": 1,
    "checkpoint.every_steps": None,
    "checkpoint.every_minutes": None,
    "metrics.trackers": [],
    "metrics.prometheus": False,
    "resources.nodes": 1,
    "resources.max_failures": 0,
    "after": None,
    "notify": None,
}


@dataclass(frozen=True)
class Done:
    """What ran, of one miniature. tasks: points that were asked; exported: were weights written for other programs?"""

    steps: int
    loss: float | None
    validations: int
    checkpoints: int
    samples: int
    tasks: int
    exported: bool
    seconds: float


def in_miniature(recipe: Recipe) -> dict[str, object]:
    """The keys to change."""
    config = recipe.validation
    found: dict[str, object] = {**SMALL}
    if config.sample is not None:
        found["validation.sample.every_steps"] = None
        found["validation.sample.max_new_tokens"] = min(config.sample.max_new_tokens, NEW_TOKENS)
    if config.tasks:
        found["validation.tasks_every_steps"] = None
        found["validation.tasks_limit"] = min(config.tasks_limit or TASK_SAMPLES, TASK_SAMPLES)
    return found


def fast_dev_run(request: Request, *, dry_run: bool, as_json: bool, follow: Follow) -> int:
    """Run it and say what ran; the exit code. A run that failed is left where it is, for `launch why`."""
    began = time.monotonic()
    with _scratch(keep_empty=not dry_run) as folder:

        def watch(run: RunDir, *, job: Job | None = None, brief: bool = True, presses: int = 0) -> int:
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                code = follow(run, job=job, brief=brief, presses=presses)
            _tell(run, code, time.monotonic() - began, as_json=as_json)
            if code != EXIT_FAILED:
                forget(RunFacts(run).run_id)
                shutil.rmtree(folder, ignore_errors=True)
            return code

        small = replace(request, run_url=str(folder / "run"), reshape=in_miniature)
        return launch(small, dry_run=dry_run, detach=False, as_json=as_json, follow=watch)


@contextlib.contextmanager
def _scratch(*, keep_empty: bool) -> Iterator[Path]:
    """A new folder; removed if nothing is in it afterwards. keep_empty: it is needed before something is."""
    folder = Path(tempfile.mkdtemp(prefix="launchyard-fast-dev-run-"))
    if not keep_empty:
        folder.rmdir()
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def what_ran(run: RunDir, seconds: float) -> Done:
    counts = {kind: sum(1 for _ in run.rows(kind)) for kind in layout.KINDS_OF_ROWS}
    last = last_rows(run, run.attempts())
    return Done(
        steps=counts[layout.STEPS],
        loss=float(last[-1]["loss"]) if last else None,
        validations=counts[layout.VALIDATION],
        checkpoints=len(committed_steps(run)),
        samples=counts[layout.SAMPLES],
        tasks=counts[layout.TASKS],
        exported=bool(run.listdir(layout.WEIGHTS)),
        seconds=round(seconds, 1),
    )


def _tell(run: RunDir, code: int, seconds: float, *, as_json: bool) -> None:
    done = what_ran(run, seconds)
    run_id = RunFacts(run).run_id
    if as_json:
        facts: JsonObject = {"run_id": run_id, "passed": code == EXIT_DONE, **asdict(done)}
        click.echo(json_text(facts | {"kept": run.url if code == EXIT_FAILED else None}))
        return
    click.echo(_in_words(done, passed=code == EXIT_DONE))
    if code == EXIT_FAILED:
        click.echo(f"  kept in {run.url}: launch why {run_id}, then launch rm {run_id}")


def _in_words(done: Done, *, passed: bool) -> str:
    parts = [
        (done.steps, "step"),
        (done.validations, "validation"),
        (done.checkpoints, "checkpoint"),
        (done.samples, "text"),
        (done.tasks, "round of tasks"),
        (int(done.exported), "export"),
    ]
    counted = [f"{n} {what}{'s' * (n != 1)}" for n, what in parts if n] or ["nothing"]
    loss = "" if done.loss is None else f"; loss {done.loss:.4f}"
    ran = f"{', '.join(counted)} in {duration(done.seconds)}{loss}"
    return f"✓ all of it works: {ran}; nothing is kept" if passed else f"✗ fast dev run: {ran}"
