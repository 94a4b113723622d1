"""One checkpoint of a run by name: RUN@best, RUN@last, RUN@1200."""

from __future__ import annotations

import os
import re

from launchyard.errors import UserError
from launchyard.launcher.runs.find import find
from launchyard.run.checkpoints import RunCheckpoints, best_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.training.recipe import recipe_of
from launchyard.training.sections.validation import prefers_high

_PINNED = re.compile(r"(?P<run>.+)@(?P<which>best|last|\d+)")


def pinned_checkpoint(name: str) -> str | None:
    """The folder or URL of that checkpoint; None for a name of another form. UserError if there is none such."""
    found = _PINNED.fullmatch(name)
    if found is None or os.path.exists(name) or _is_of_hub(found["run"]):
        return None
    run = find(found["run"])
    return run.path(run.checkpoint_dir(pinned_step(run, found["which"])))


def _is_of_hub(name: str) -> bool:
    """ORG/NAME, which may stand before @REVISION."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def pinned_step(run: RunDir, which: str) -> int:
    """Step of `best`, `last` or a number; UserError names those that there are."""
    steps = sorted(RunCheckpoints(run).counting())
    if not steps:
        raise UserError(f"{run.url} has no checkpoint yet")
    if which == "last":
        return steps[-1]
    if which == "best":
        return _best(run)
    if int(which) not in steps:
        raise UserError(f"{run.url} has no checkpoint of step {which}; there are {', '.join(map(str, steps))}")
    return int(which)


def _best(run: RunDir) -> int:
    wanted = recipe_of(run, run.attempts()[-1]).checkpoint
    high = prefers_high(wanted.best_metric, wanted.best_mode)
    step = best_checkpoint(run, metric=wanted.best_metric, high=high)
    if step is None:
        raise UserError(
            f"{run.url}: no checkpoint has a validation, so none is the best; name one, as in {run.url}@last",
            hint="checkpoint.keep_best=1 with validation.every_steps=N saves the best at once",
        )
    return step
