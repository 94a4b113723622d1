"""Training in this very process: `from launchyard import train`, for a notebook, a debugger or a unit test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from launchyard.launcher.python.begin import begin_run, go_on_with_run
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.python.handle import Run
from launchyard.launcher.python.inside import Inside, alone_here
from launchyard.launcher.python.launch import RecipeLike, named
from launchyard.launcher.recipe.load import plain_mapping
from launchyard.launcher.runs.find import reach_run
from launchyard.launcher.runs.state import state_of
from launchyard.run import layout
from launchyard.run.records import Outcome
from launchyard.run.rundir import RunDir
from launchyard.storage.files import typed_path

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.training.telemetry.instruments import OnStep

DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True)
class Training:
    """How a call of `train` ended. `outcome`: completed, or stopped, which another call goes on from."""

    run: Run
    outcome: Outcome
    step: int

    @cached_property
    def losses(self) -> list[float]:
        """Nats per token (of pairs: nats per pair), one a step, from the first step of the run on."""
        return [float(row["loss"]) for row in self.run.metrics()]

    @cached_property
    def model(self) -> LoadedModel:
        """The model as it was saved last, ready to write text."""
        return self.run.model()


def train_here(
    recipe: RecipeLike | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    run_url: str | os.PathLike[str] | None = None,
    on_step: OnStep | None = None,
) -> Training:
    """Trains in this process, as its one worker on one GPU or the CPU, and returns when the run has ended.

    The run is one as any other: its directory has rows and exact checkpoints, `launch status` shows it, `launch stop`
    stops it, `launch resume` goes on with it on any number of workers. Its numbers are those of `launch`, to the bit.

    recipe: as for `launch`; of its resources one worker is taken. overrides: keys on top of it, dotted. run_url: its
    run directory. If there is a run in it already, that run goes on from its newest checkpoint, with the keys that
    differ changed as `launch resume` changes them; without a recipe with none. A run that is complete is not trained.
    on_step: called after each step with its row (step, loss, grad_norm, lr, tokens_seen …).
    Ctrl-C saves after the present step and returns, `outcome` is stopped then; a second one raises KeyboardInterrupt.
    RecipeErrors and UserError for mistakes; any error of training itself once it is on record.
    """
    with alone_here():
        inside = Inside(on_step)
        with python_errors():
            given = plain_mapping(overrides or {}, "overrides")
            place = _place(run_url)
            if place is not None and place.exists(layout.PLAN):
                source = None if recipe is None else named(recipe)
                run = go_on_with_run(place, source, given, workers=1, start=inside.start)
            else:
                url = None if place is None else place.url
                run = begin_run(url, named(recipe or DEFAULT_RECIPE), given, workers=1, start=inside.start)
        if inside.claimed:
            inside.train()
    state = state_of(run)
    outcome: Outcome = "completed" if state.state == "completed" else "stopped"
    return Training(Run(state.run_id, run.url, run), outcome, state.step or 0)


def _place(url: str | os.PathLike[str] | None) -> RunDir | None:
    return None if url is None else reach_run(RunDir(typed_path(os.fspath(url))))
