"""A run as a value: what the commands tell of it and do to it, as methods. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Unpack

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.python.errors import python_errors
from launchyard.launcher.recipe.load import plain_mapping
from launchyard.launcher.runs.find import find, reach_run
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.model.weights.load import LoadOptions


@dataclass(frozen=True)
class Run:
    """A run that was launched. `id` and `url` name it wherever a RUN is named; the run does not depend on this value.

    All methods read the run directory, so they work in any process, and while it runs.
    """

    id: str
    url: str
    _place: RunDir = field(repr=False, compare=False)

    @classmethod
    def at(cls, place: RunDir) -> Run:
        """The run in a directory that is there."""
        return cls(state_of(place).run_id, place.url, place)

    @classmethod
    def named(cls, run: str) -> Run:
        """A run by its id, name or URL, or `latest`; UserError if there is none."""
        return cls.at(find(run))

    def status(self) -> RunState:
        """It at this moment: `state` (running, completed, stopped, failed, lost …), step, loss in nats per token."""
        return state_of(self._reached())

    def metrics(self, kind: str = layout.STEPS) -> list[JsonObject]:
        """The surviving history, one row a step, in order: step, loss, grad_norm, lr, tokens_seen, step_seconds …

        kind: steps, validation, tasks or samples.
        """
        if kind not in layout.KINDS_OF_ROWS:
            raise UserError(f"kind: {kind!r}; there are rows of {', '.join(layout.KINDS_OF_ROWS)}")
        return list(self._reached().rows(kind))

    def wait(self, timeout: float | None = None) -> RunState:
        """Waits until the run has completed or was stopped; its state then.

        timeout: in seconds, TimeoutError after it, and the run goes on. LaunchError if it failed, or its owner is lost.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (state := self.status()).alive:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"{self.id} goes on after {timeout:g} s, at step {state.step or 0}")
            time.sleep(1.0 if state.job_id else 0.2)  # a scheduler is asked each time
        if state.state in ("completed", "stopped"):
            return state
        what = state.message or state.queue or "its owner left no outcome"
        raise LaunchError(f"{self.id} {state.state}: {what}", hint=f"launch why {self.id}")

    def stop(self) -> RunState:
        """Has the run save after its present step and stop; waits for that. Nothing happens to one that has ended."""
        state = self.status()
        if state.alive and state.state != "pending":
            self._reached().request_stop("stop")
            return self.wait()
        return self.cancel() if state.alive else state

    def cancel(self) -> RunState:
        """Ends the run now, without a save. Earlier checkpoints stay. Nothing happens to one that has ended."""
        place = self._reached()
        state = state_of(place)
        job = newest_job(place)
        if not state.alive or job is None:
            return state
        load_backend(job.backend).cancel(place, job)
        return state_of(place)

    def resume(self, overrides: Mapping[str, object] | None = None, *, cluster: str | None = None) -> Run:
        """Goes on from the newest checkpoint, in a process of its own or a job; returns at once.

        overrides: keys that change from here on, such as {"train.max_steps": 2000} or {"resources.nodes": 4}.
        cluster: another place. UserError for a run that lives or is complete, RecipeErrors for keys that it must keep.
        """
        from launchyard.launcher.submit.resume import make_ready

        with python_errors():
            changes = plain_mapping(overrides or {}, "overrides")
            ready = make_ready(self._reached(), changes, cluster=cluster)
            ready.make_known()
            ready.submit(report=lambda line: None)
        return Run(self.id, ready.target.url, ready.target)

    def model(self, **options: Unpack[LoadOptions]) -> LoadedModel:
        """The model of the newest checkpoint, ready to write text: as `load` gives it. UserError without one."""
        from launchyard.launcher.watch.load import load_model

        self._reached()
        return load_model(self.url, **options)

    def _reached(self) -> RunDir:
        return reach_run(self._place)
