"""Resuming a run: checked before anything starts.

A resume has the steps of a launch, for the next attempt: the run's own recipe and plan, with KEY=VALUE on top.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launchyard.errors import NothingRunsError, RecipeErrors, StartedError, UserError, user_errors
from launchyard.host.interrupts import HeldInterrupt
from launchyard.launcher.backends.base import load_backend, refuse_if_alive
from launchyard.launcher.backends.cluster import Cluster, ClusterStorage, load_cluster, store_environment
from launchyard.launcher.backends.hardware import probe_hardware
from launchyard.launcher.backends.request import AFTER_NOTHING, After
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.plan.plan import Plan, PlanError, PlannedData
from launchyard.launcher.plan.planner import CPU_ENVIRONMENT, WORKER_ENVIRONMENT, make_plan
from launchyard.launcher.recipe.load import LoadedRecipe, check_recipe, from_here
from launchyard.launcher.recipe.notify import check_notify
from launchyard.launcher.recipe.own_code import OwnFile, check_fit, edited, frozen_described, resumed_code
from launchyard.launcher.runs.checkpoints import newest_gone
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.registry import make_known, registered_at
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.launcher.submit.changes import (
    ENDS_EARLY,
    Change,
    accumulate,
    changes_between,
    is_fixed,
    is_within,
    places,
    refuse_another_past,
    refuse_another_run,
)
from launchyard.launcher.submit.code import CodeSnapshot, own_record, record_again, take_snapshot, with_own
from launchyard.launcher.submit.copy_run import copied, destination, refuse_moved
from launchyard.launcher.submit.launch import Start
from launchyard.launcher.submit.move import place_changes, reach_from, recorded_place
from launchyard.launcher.submit.packages import check_packages, needs_packages
from launchyard.launcher.submit.room import check_room, with_room
from launchyard.launcher.submit.run_data import count_more, find_moved, record_moved, restore_data
from launchyard.run import layout
from launchyard.run.checkpoints import RunCheckpoints, forget_rollback, record_rollback
from launchyard.run.frozen import check_frozen
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage.options import StoreOptions
from launchyard.training.own.frozen import write_frozen
from launchyard.training.recipe import Recipe, overrides_of, stored_recipe
from launchyard.training.spec import Workload, frozen_workload, place_of_data


@dataclass(frozen=True)
class ReadyToResume:
    """An attempt that could start now. Making it changed nothing."""

    run: RunDir
    state: RunState
    overrides: dict[str, Any]
    plan: Plan
    recipe: Recipe
    changes: tuple[Change, ...]  # since the attempt before
    from_step: int | None = None  # to go back to, on purpose
    moved: bool = False  # its data lies in another place, or more of its epochs are counted
    cluster: Cluster | None = None  # another one than before
    copy_to: RunDir | None = None  # where it goes on, if its nodes do not see where it is
    own: OwnFile | None = None  # new code of the user's

    @property
    def target(self) -> RunDir:
        """The run directory of the attempt."""
        return self.copy_to or self.run

    def to_json(self) -> dict[str, Any]:
        facts = {"run_id": self.state.run_id, "run_url": self.target.url, "from_step": self.state.checkpoint or 0}
        return {**facts, "overrides": self.overrides, "changes": [asdict(change) for change in self.changes]}

    def make_known(self) -> None:
        """Has commands find the run by its id, which those after a resume name."""
        if self.copy_to is None:
            make_known(self.run, self.state.run_id, self.state.name, self.plan.store)

    def submit(self, *, report: Callable[[str], None], start: Start | None = None) -> Job:
        """Starts it, at its scheduler or by `start`; UserError if another job was faster. StartedError for a Ctrl-C
        while it is handed over, which is done all the same. Reports a change of launchyard itself."""
        start = start or load_backend(self.plan.scheduler).submit
        restore_data(self.recipe, self.plan.data)
        refuse_if_alive(self.run)  # before its record is touched
        if (self.state.checkpoint or 0) < self.plan.max_steps:
            check_room(self.plan, self.target)
        if self.copy_to is None:
            return self._record_and_submit(report, start)
        with (
            copied(self.run, self.copy_to, {self.state.checkpoint or 0}, report),
            registered_at(self.copy_to, self.state.run_id, self.state.name, self.plan.store),
        ):
            return self._record_and_submit(report, start)

    def _record_and_submit(self, report: Callable[[str], None], start: Start) -> Job:
        if changed := record_again(self.target, self._code(report)):
            report(f"! {'code':<8} {changed}")
        if self.moved:
            record_moved(self.target, self.plan.data)
        with recorded_place(self.target, self.plan) if self.cluster else nullcontext():
            return self._submit(start)

    def _code(self, report: Callable[[str], None]) -> CodeSnapshot:
        """What is recorded of the code of the next attempts; the user's own new file is in the run before that."""
        code = take_snapshot(Path.cwd())
        if self.own is not None:
            write_frozen(self.target, self.own.source)
            return with_own(code, self.own)
        record = own_record(self.target)
        if record is None or self.recipe.code is None:
            return code
        if edited(record.path, record.frozen):
            report(
                f"! {'own code':<8} {record.path} is another by now; the run goes on with its copy {record.frozen}; to "
                f"take the new one: launch resume {self.state.run_id} code={record.path}"
            )
        return code.model_copy(update={"own": record})

    def _submit(self, start: Start) -> Job:
        with HeldInterrupt() as interrupt:
            job = self._hand_over(start)
        if interrupt.pressed:
            raise StartedError(self.state.run_id, job)
        return job

    def _hand_over(self, start: Start) -> Job:
        plan = self.plan
        run = self.target
        if self.from_step is None:
            return start(run, plan, self.overrides)
        rollback = record_rollback(run, self.from_step)
        try:
            return start(run, plan, self.overrides)
        except (UserError, NothingRunsError):
            forget_rollback(run, rollback)
            raise


def make_ready(
    run: RunDir,
    changes: dict[str, Any],
    *,
    from_step: int | None = None,
    cluster: str | None = None,
    after: After = AFTER_NOTHING,
) -> ReadyToResume:
    """Check a resume with these changed keys; UserError or RecipeErrors name all its problems.

    from_step: to go back to, 0 for the beginning. cluster: name or file of the place to go on in; None: where it was.
    after: jobs of the scheduler that have to be over before it goes on.
    """
    refuse_moved(run)
    refuse_if_alive(run)
    place = load_cluster(cluster) if cluster else None
    copy_to = destination(run, RunFacts(run).run_id, place) if place is not None else None
    if place is not None:
        if copy_to is None:
            reach_from(place, run)
        changes = place_changes(place) | changes
    check_frozen(run)
    changes = from_here(changes)
    state = state_of(run)
    with user_errors():
        raw = stored_recipe(run)
    given = overrides_of(run)
    source = run.path(layout.RECIPE)
    before = check_recipe(raw, given, source=source)
    where = place or _cluster(run.read_plan())
    with user_errors():
        changes, own = resumed_code(run, before.recipe.code, changes, tries=where.container is None)
    asked = check_recipe(before.raw, changes, source=source)
    refuse_another_run(before.recipe, asked.recipe)
    moved = places(changes, before.recipe, asked.recipe)
    overrides = accumulate(given, {key: value for key, value in changes.items() if not is_fixed(key)} | moved)
    loaded = check_recipe(raw, overrides, source=source)
    recipe = loaded.recipe
    if recipe.code is not None:
        check_fit(loaded, frozen_described(run, recipe.code) if own is None else own.described)
    _check_new_needs(loaded, changes, where)
    with user_errors():
        workload = frozen_workload(run)
        there = None if moved else place_of_data(run, workload)
        data = find_moved(recipe, workload.data) if there is None else count_more(recipe, there)
    workload = workload.model_copy(update={"data": data})
    plan = _plan((copy_to or run).url, loaded, workload, where, after)
    if from_step is None:
        _refuse_missing(run, state)
    else:
        state = _go_back(run, state, from_step)
    refuse_another_past(before.recipe, recipe, state.checkpoint or 0)
    changed = tuple(changes_between(before.recipe, recipe))
    _check_length(state, plan.max_steps)
    if from_step is None:
        _check_early_end(state, plan.max_steps, changed)
    return ReadyToResume(run, state, overrides, plan, recipe, changed, from_step, data != there, place, copy_to, own)


def _check_new_needs(loaded: LoadedRecipe, changes: dict[str, object], where: Cluster) -> None:
    """What was there at the launch is not asked again: nothing new holds up a resume."""
    if any(is_within(key, "notify") for key in changes):
        check_notify(loaded, from_here=load_backend(where.scheduler).TRAITS.takes_environment)
    if where.container is None and needs_packages(changes):
        check_packages(loaded)


def _refuse_missing(run: RunDir, state: RunState) -> None:
    """UserError if the newest checkpoint by the run's own records is gone, or is not of this run."""
    gone = newest_gone(run, state.run_id)
    if gone is not None:
        back = ", or ".join(gone.go_back)
        raise UserError(f"{state.run_id}: {gone.what}", hint=f"bring it back, or go back on purpose: {back}")


def _go_back(run: RunDir, state: RunState, step: int) -> RunState:
    """The state of a run whose checkpoints after `step` do not count."""
    found = list(RunCheckpoints(run).counting())
    if step and step not in found:
        listed = ", ".join(map(str, sorted(found))) or "none, for there is no checkpoint"
        raise UserError(
            f"--from-step {step}: no checkpoint of that step; allowed: {listed}",
            hint=f"launch checkpoints {state.run_id}; --from-scratch begins again at step 0",
        )
    return replace(state, checkpoint=step or None, step=step)


def _plan(run_url: str, loaded: LoadedRecipe, workload: Workload, cluster: Cluster, after: After) -> Plan:
    """The plan of the next attempt: the frozen data and model, on the workers that are asked for now."""
    recipe = loaded.recipe
    try:
        return make_plan(
            recipe,
            cluster=cluster,
            run_id=workload.run_id,
            run_url=run_url,
            data=PlannedData(spec=workload.data, vocab_size=None),
            host=with_room(probe_hardware(recipe, cluster), RunDir(run_url)),
            init=None if recipe.model.preset else workload.model,
            after=after,
        )
    except PlanError as error:
        raise RecipeErrors([f"{loaded.origin(key)}: {key}: {what}" for key, what in error.problems]) from error


def _cluster(frozen: dict[str, Any]) -> Cluster:
    """The cluster by its name; if its file is not found any more, from the values in the plan."""
    name = str(frozen.get("cluster", FIRST))
    scheduler = str(frozen.get("scheduler", FIRST))
    store = StoreOptions.model_validate(frozen.get("store", {}))
    derived = {"OMP_NUM_THREADS", *WORKER_ENVIRONMENT, *CPU_ENVIRONMENT, *store_environment(store)}
    environment = {key: value for key, value in frozen.get("environment", {}).items() if key not in derived}
    storage = ClusterStorage(**store.model_dump())
    known = Cluster(
        name=name,
        scheduler=scheduler,
        environment=environment,
        storage=storage,
        **load_backend(scheduler).remembered(frozen),
    )
    try:
        found = load_cluster(name)
    except UserError:
        return known
    return found if found.scheduler == scheduler else known


def _check_early_end(state: RunState, max_steps: int, changed: tuple[Change, ...]) -> None:
    """UserError for a run that ended before its last step, and would at once do so again."""
    done = state.step or 0
    if state.state == "completed" and done < max_steps and not any(change.lengthens for change in changed):
        raise UserError(
            f"{state.run_id} is complete: {state.message or f'it ended early after {done} of {max_steps} steps'}",
            hint=f"change what ended it: launch resume {state.run_id} with another {' or '.join(ENDS_EARLY)}",
        )


def _check_length(state: RunState, max_steps: int) -> None:
    """UserError for a run that is complete, or would have to go back."""
    done = state.step or 0
    if state.state == "completed" and max_steps <= done:
        raise UserError(
            f"{state.run_id} has completed all its {done} steps",
            hint=f"to train longer, raise its length: launch resume {state.run_id} train.max_steps={done * 2}",
        )
    saved = state.checkpoint or 0
    if max_steps < saved:
        raise UserError(
            f"train.max_steps: {max_steps} steps in all, but {state.run_id} has saved step {saved} already",
            hint=f"use more than {saved}",
        )
