"""Submitting the points of a sweep: whatever is missing is launched, whatever has failed goes on, nothing twice.

What has happened is read from the runs themselves, so that a process that is killed at any instant leaves nothing to
repair. A scheduler gets all jobs at once; on this machine the next point starts when one has ended, and so it does
with `--at-once` where no job can wait for another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launchyard.errors import UserError
from launchyard.host.environment import variable
from launchyard.host.processes import variable_of
from launchyard.launcher.agent.ownership import newest_job
from launchyard.launcher.backends.base import load_backend, owner_alive
from launchyard.launcher.backends.cluster import Cluster, load_cluster, reach_storage
from launchyard.launcher.backends.request import After
from launchyard.launcher.plan.plan import Plan
from launchyard.launcher.runs.registry import known_ids, register
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.launcher.submit import resume
from launchyard.launcher.submit.code import CodeSnapshot, take_snapshot
from launchyard.launcher.submit.launch import NewFolder, Ready, submit, with_turn
from launchyard.launcher.submit.room import check_room
from launchyard.launcher.sweep.plan import point_text, ready_point
from launchyard.launcher.sweep.record import Sweep, SweepPoint, is_stopped
from launchyard.run import layout
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage import files

POLL_SECONDS = {True: 0.3, False: 2.0}  # local folder of a sweep, remote one
GPUS = "CUDA_VISIBLE_DEVICES"
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Turn:
    """The conditions of one start. `gpus`: of this machine; `after`: a job of the scheduler that comes before."""

    gpus: list[str] | None = None
    after: str | None = None


def submit_points(sweep: Sweep, *, report: Report) -> None:
    """Submits what is missing or has failed; waits for all if it `stays`. Call it inside `submitting`."""
    cluster = load_cluster(sweep.cluster)
    reach_storage(cluster)
    work = _Submitter(sweep, cluster, take_snapshot(Path.cwd()), report)
    if stays(sweep, cluster):
        work.run_all()
    else:
        work.hand_over_all()


def stays(sweep: Sweep, cluster: Cluster) -> bool:
    """Returns True if `submit_points` starts one point after another and waits for all."""
    traits = load_backend(cluster.scheduler).TRAITS
    return not traits.scheduled or (sweep.at_once is not None and not traits.waits_for_jobs)


@dataclass
class _Submitter:
    sweep: Sweep
    cluster: Cluster
    code: CodeSnapshot
    report: Report

    # -- a scheduler -------------------------------------------------------------------------------------------------
    def hand_over_all(self) -> None:
        """Every point as a job. With `at_once` each waits for the end of the one that is so many points before it."""
        lanes = self.sweep.at_once or len(self.sweep.points)
        last: dict[int, str] = {}
        todo = []
        for point, state in self._states():
            if state is not None and state.alive and state.job_id:
                last[point.number % lanes] = state.job_id
            elif state is None or _is_open(state):
                todo.append(point)
            elif state.state == "unknown":
                self.report(f"! {'note':<8} {point.run_id}: {state.queue}; left alone")
        for point in todo:
            if is_stopped(self.sweep):
                self.report(f"! {'stopped':<8} the points that are left stay where they are")
                return
            job = self._start(point, _Turn(after=last.get(point.number % lanes)))
            if job is not None:
                last[point.number % lanes] = job.job_id

    # -- one after another ---------------------------------------------------------------------------------------------
    def run_all(self) -> None:
        """So many points at a time; returns when all have ended, or the sweep was stopped."""
        states = list(self._states())
        alive = [point for point, state in states if state is not None and state.alive]
        todo = [point for point, state in states if state is None or (not state.alive and _is_open(state))]
        at_once = self.sweep.at_once or 1
        while (todo or alive) and not is_stopped(self.sweep):
            alive = [point for point in alive if not self._has_ended(point)]
            while todo and len(alive) < at_once and not is_stopped(self.sweep):
                gpus = self._free_gpus(todo[0], alive) if at_once > 1 else None
                if gpus == []:
                    break
                alive.append(todo.pop(0))
                self._start(alive[-1], _Turn(gpus=gpus))
            time.sleep(POLL_SECONDS[not files.is_remote(self.sweep.url)])

    def _has_ended(self, point: SweepPoint) -> bool:
        run = self.sweep.run_of(point)
        if owner_alive(run):
            return False
        state = state_of(run)
        loss = f", loss {state.loss:.4g}" if state.loss is not None else ""
        mark = "✓" if state.state == "completed" else "✗"
        why = "" if state.state == "completed" else f": {state.message or state.reason}; launch why {point.run_id}"
        self.report(f"{mark} {state.state:<9} {point.run_id} at step {state.step or 0}{loss}{why}")
        return True

    def _free_gpus(self, point: SweepPoint, alive: list[SweepPoint]) -> list[str] | None:
        """GPUs of this machine for a point, beside those of others; empty while there are too few, None elsewhere."""
        ready = self._ready(point)
        if ready.plan.device != "cuda" or load_backend(self.cluster.scheduler).TRAITS.scheduled:
            return None
        named = variable(GPUS)
        every = named.split(",") if named else [str(number) for number in range(len(ready.host.gpus))]
        held = {gpu for other in alive for gpu in self._gpus_of(other, every)}
        free = [gpu for gpu in every if gpu not in held]
        wanted = ready.plan.nproc_per_node
        return free[:wanted] if len(free) >= wanted else []

    def _gpus_of(self, point: SweepPoint, every: list[str]) -> list[str]:
        job = newest_job(self.sweep.run_of(point))
        named = variable_of(job.pid, GPUS) if job is not None else None
        return named.split(",") if named else every

    # -- one point -----------------------------------------------------------------------------------------------------
    def _states(self) -> Iterator[tuple[SweepPoint, RunState | None]]:
        """Every point and the state of its run; None if it has none yet."""
        for point in self.sweep.points:
            run = self.sweep.run_of(point)
            yield point, state_of(run) if run.exists(layout.PLAN) else None

    def _ready(self, point: SweepPoint) -> Ready:
        recipe = self.sweep.unchecked
        return ready_point(self.sweep, point, self.cluster, code=self.code, recipe=recipe, dry_run=False)

    def _start(self, point: SweepPoint, turn: _Turn) -> Job | None:
        """Launches a point, or resumes its run. None if somebody else was faster."""
        run = self.sweep.run_of(point)
        where = f"{point.number}/{len(self.sweep.points)}"
        self.report(f"✓ {'point':<8} {where} · {point_text(point.overrides)}")
        try:
            return self._go_on(run, point, turn) if run.exists(layout.PLAN) else self._launch(run, point, turn)
        except UserError:
            if run.exists(layout.PLAN) and owner_alive(run):
                return newest_job(run)
            raise

    def _launch(self, run: RunDir, point: SweepPoint, turn: _Turn) -> Job:
        clear_remains(run)
        ready = self._ready(point)
        if turn.after is not None:
            ready = with_turn(ready, turn.after)
        ready = replace(ready, plan=_on_gpus(ready.plan, turn.gpus))
        check_room(ready.plan, run)
        _, job = submit(ready, NewFolder(run), report=self.report)
        found: Job = job
        return found

    def _go_on(self, run: RunDir, point: SweepPoint, turn: _Turn) -> Job:
        ready = resume.make_ready(run, {}, after=After(end=turn.after))
        if point.run_id not in known_ids():  # the process that launched it was killed before it could
            register(point.run_id, point.name, run.url, store=ready.plan.store)
        ready = replace(ready, plan=_on_gpus(ready.plan, turn.gpus))
        job = ready.submit(report=self.report)
        self.report(f"✓ {'resume':<8} {point.run_id} · from step {ready.state.checkpoint or 0}")
        return job


def _is_open(state: RunState) -> bool:
    """Returns True for a run that nobody works at and that is not complete."""
    return not state.alive and state.state not in ("completed", "unknown")


def _on_gpus(plan: Plan, gpus: list[str] | None) -> Plan:
    if not gpus:
        return plan
    return plan.model_copy(update={"environment": {**plan.environment, GPUS: ",".join(gpus)}})


def clear_remains(run: RunDir) -> None:
    """Removes what a launch has left that was killed before its run was one. Call it inside `submitting`."""
    if run.listdir(""):
        files.remove_folder(run.url)
