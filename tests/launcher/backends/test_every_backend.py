"""What holds for every scheduler: the same tests over one table, to which a new one adds its row.

All rows are planned. Those that need no daemon are run as well, with the stand-in worker.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launchyard.errors import UserError
from launchyard.host.processes import is_alive
from launchyard.launcher.backends.base import Backend, Doctor, SiteReader, Traits, load_backend, load_doctor, load_site
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.backends.request import Ask, Process, Request
from launchyard.launcher.backends.section import Part, known_backends
from launchyard.launcher.plan.plan import Plan, PlanError, PlannedData
from launchyard.launcher.plan.planner import make_plan
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.submit.resume import _cluster as cluster_of_plan
from launchyard.run.records import Shape
from launchyard.training.spec import DataSpec, TokenSource
from tests.support.standin import Standin, kill


@dataclass(frozen=True)
class Row:
    """One scheduler. `refuses`: keys of a cluster file that mean nothing to it. `here`: jobs run without a daemon.

    `slow`: tests of its own hold most of what is tried by running it.
    """

    name: str
    section: dict[str, Any] = field(default_factory=dict)
    refuses: dict[str, Any] = field(default_factory=dict)
    here: bool = False
    slow: bool = False

    @property
    def cluster(self) -> Cluster:
        return Cluster(**{"name": "somewhere", "scheduler": self.name, **self.sections})

    @property
    def sections(self) -> dict[str, Any]:
        return {self.name: self.section} if self.section else {}


SCRIPT = {"setup": ["module load cuda"]}
ROWS = (
    Row("local", refuses=SCRIPT, here=True, slow=True),
    Row("slurm", section={"partition": "gpu", "notice_seconds": 60}),
    Row("ray", section={"address": "http://head:8265"}, refuses=SCRIPT),
    Row("example", section={"spool": "/scratch/spool", "slots": 2}, refuses=SCRIPT, here=True),
)
EVERY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
HERE = pytest.mark.parametrize("row", [row for row in ROWS if row.here], ids=lambda row: row.name)
LIVE = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[pytest.mark.slow] if row.slow else []) for row in ROWS if row.here],
    ids=lambda row: row.name,
)
PYTHON = "/venv/bin/python"
MACHINE = HostFacts(cpus=8, memory=32 * 10**9, python=PYTHON, torchrun_flags=("--shutdown-timeout",))
DATA = DataSpec(
    train=(TokenSource(folder="/data/train", n_tokens=10**7),),
    validation=(TokenSource(folder="/data/validation", n_tokens=10**5),),
    tokenizer="/data/tokenizer/tokenizer.json",
    digest="d",
)


def ask() -> Ask:
    return Ask(
        run_id="tiny-abcd",
        run_url="/runs/tiny-abcd",
        shape=Shape(nproc_per_node=2, device="cpu"),
        sizes=(1,),
        environment={"A": "b c"},
        python=PYTHON,
        logs="/logs",
    )


def plan_of(cluster: Cluster, **keys: Any) -> Plan:
    recipe = load_recipe("quickstart", {key.replace("__", "."): value for key, value in keys.items()})
    data = PlannedData(spec=DATA, vocab_size=2048)
    return make_plan(
        recipe.recipe, cluster=cluster, run_id="tiny-abcd", run_url="/runs/tiny-abcd", data=data, host=MACHINE
    )


def test_every_backend_has_its_row() -> None:
    assert {row.name for row in ROWS} == set(known_backends())


# -- the interface ---------------------------------------------------------------------------------------------------
def functions_of(protocol: type) -> Iterator[tuple[str, list[str]]]:
    for name, function in vars(protocol).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, list(inspect.signature(function).parameters)[1:]


@EVERY
def test_the_folder_keeps_to_the_protocols(row: Row) -> None:
    backend = load_backend(row.name)
    assert isinstance(backend.TRAITS, Traits) and backend.TRAITS.title
    for module, protocol in ((backend, Backend), (load_doctor(row.name), Doctor), (load_site(row.name), SiteReader)):
        for name, wanted in functions_of(protocol):
            given = inspect.signature(getattr(module, name)).parameters
            assert list(given)[: len(wanted)] == wanted, f"{row.name}: {name}({', '.join(given)})"
            more = list(given.values())[len(wanted) :]
            assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in more), name
    options: Any = import_module(f"launchyard.launcher.backends.{row.name}.options")
    assert options.SECTION is None or issubclass(options.SECTION, Part)
    options.check(row.cluster)


@EVERY
def test_the_cluster_file_refuses_what_means_nothing(row: Row) -> None:
    for key, value in row.refuses.items():
        with pytest.raises(ValidationError, match=f"{key}: "):
            Cluster(**{"name": "x", "scheduler": row.name, key: value})
    for other in ROWS:
        if row.section and other is not row:
            with pytest.raises(ValidationError, match=f"for the scheduler {row.name}; this one is {other.name}"):
                Cluster(**{"name": "x", "scheduler": other.name, **row.sections})
    if row.section:
        with pytest.raises(ValidationError, match=r"nonsense"):
            Cluster(**{"name": "x", "scheduler": row.name, row.name: {"nonsense": 1}})


# -- planning --------------------------------------------------------------------------------------------------------
def planned(row: Row) -> tuple[Request | None, Process, str]:
    backend, cluster = load_backend(row.name), row.cluster
    return backend.request(cluster, ask()), backend.first_process(cluster, ask()), backend.worker_python(cluster, "py")


@EVERY
def test_planning_is_pure(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whoever asks, when and where; nothing is opened, started or asked."""
    first = planned(row)

    def forbidden(*args: Any, **more: Any) -> Any:
        raise AssertionError("a plan asks nobody")

    with monkeypatch.context() as patch:
        for place, name in ((subprocess, "Popen"), (socket, "socket"), (io, "open"), (time, "time"), (os, "getpid")):
            patch.setattr(place, name, forbidden)
        patch.setattr("builtins.open", forbidden)
        patch.setattr(socket, "gethostname", forbidden)
        patch.setenv("HOME", str(tmp_path))
        patch.setenv("XDG_STATE_HOME", str(tmp_path))
        patch.chdir(tmp_path)
        again = planned(row)
    assert again == first


@EVERY
def test_every_python_of_ours_starts_with_its_safe_path(row: Row) -> None:
    plan = plan_of(row.cluster)
    request, outermost, _ = planned(row)
    for process in (outermost, *plan.processes):
        if process.role in ("owner", "agent", "torchrun"):
            at = process.argv.index("-m") if "-m" in process.argv else len(process.argv)
            assert "-P" in process.argv[:at], process.argv
    if request is not None:
        words = re.sub(r'[",\s]+', " ", request.text)
        assert re.search(r"python\S* -P ", words), request.text
        assert "launchyard" in words and ask().run_url in words


@EVERY
def test_the_quickstart_can_be_planned(row: Row) -> None:
    plan = plan_of(row.cluster)
    assert (plan.scheduler, plan.cluster) == (row.name, "somewhere")
    assert (plan.request is None) == (plan.script is None) == (not load_backend(row.name).TRAITS.scheduled)
    assert json.loads(plan.model_dump_json()) == json.loads(plan_of(row.cluster).model_dump_json())


@HERE
def test_more_nodes_than_one_machine_are_refused(row: Row) -> None:
    with pytest.raises(PlanError, match=r"resources\.nodes: 2 nodes, but somewhere is .*; use 1"):
        plan_of(row.cluster, resources__nodes=2)


@EVERY
def test_a_stored_plan_remembers_its_cluster(row: Row) -> None:
    """Its file may be gone when the run is resumed."""
    stored = json.loads(plan_of(row.cluster).model_dump_json())
    found = cluster_of_plan(stored)
    assert found.scheduler == row.name
    again = load_backend(row.name).remembered(json.loads(plan_of(found).model_dump_json()))
    assert again == load_backend(row.name).remembered(stored), "nothing is lost by a second resume"


# -- running, where no daemon is needed ------------------------------------------------------------------------------
MakeRun = Callable[..., Standin]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeRun]:
    made: list[Standin] = []

    def one(row: Row, run_id: str = "tiny-abcd") -> Standin:
        made.append(Standin(tmp_path, run_id=run_id, scheduler=row.name))
        return made[-1]

    yield one
    for run in reversed(made):  # those that wait first
        run.close()


def poll(run: Standin) -> Any:
    return run.backend.poll(run.run, run.job)


@LIVE
def test_a_run_waits_runs_and_completes(row: Row, make: MakeRun) -> None:
    first = make(row, "first-abcd")
    first.submit()
    first.running()
    if first.backend.TRAITS.scheduled:
        second = make(row, "second-abcd")
        second.submit(steps=5)
        waits = poll(second)
        assert (waits.state, state_of(second.run).state, poll(first).state) == ("queued", "pending", "running")
        assert waits.reason and state_of(second.run).queue == waits.reason, "people are told why"
        first.running(steps=first.steps(0) + 200)  # time enough for a second that does not wait
        assert second.is_alive() and not second.run.attempts()
        first.run.request_stop("stop")
        assert second.outcome().outcome == "completed"
        assert poll(second).state == "gone"
        assert first.outcome().time <= second.run.job(0).created
    else:
        assert poll(first).state == "running"
        first.run.request_stop("stop")
    first.outcome()
    first.nothing_left()


@pytest.mark.slow
@LIVE
def test_a_stop_leaves_it_resumable(row: Row, make: MakeRun) -> None:
    run = make(row)
    run.submit()
    run.running()
    run.run.request_stop("stop")
    first = run.outcome()
    assert (first.outcome, first.reason) == ("stopped", "stop")
    seen = state_of(run.run)
    assert seen.resumable and not seen.alive and seen.checkpoint == first.step
    run.submit(steps=first.step + 5, overrides={"train.max_steps": 9})
    run.wait(lambda: run.run.attempts() == [0, 1])
    assert run.run.job(1).overrides == {"train.max_steps": 9}
    assert run.outcome().outcome == "completed"
    assert [row["step"] for row in run.run.rows("steps")] == list(range(1, first.step + 6)), "no step is lost"
    run.nothing_left()


@pytest.mark.slow
@LIVE
def test_a_notice_costs_an_attempt_and_no_step(row: Row, make: MakeRun) -> None:
    run = make(row)
    run.submit(steps=60)
    run.running()
    assert run.backend.notify(run.run, run.job)
    assert run.outcome().outcome == "completed"
    assert len(run.run.attempts()) == 2
    assert [row["step"] for row in run.run.rows("steps")] == list(range(1, 61))


@LIVE
def test_cancel_leaves_nothing_running(row: Row, make: MakeRun) -> None:
    run = make(row)
    run.submit()
    run.running()
    owner = run.job
    waiting = make(row, "waiting-abcd") if run.backend.TRAITS.scheduled else None
    if waiting is not None:
        waiting.submit()
        waiting.backend.cancel(waiting.run, waiting.job)
        assert waiting.outcome().message == "taken back before it began"
        assert not waiting.is_alive() and not waiting.run.attempts()
    run.backend.cancel(run.run, owner)
    assert not run.is_alive() and not run.left()
    assert not is_alive(owner.pid, owner.pid_started)
    seen = state_of(run.run)
    assert (seen.state, seen.reason, seen.resumable) == ("stopped", "cancelled", True)
    assert run.run.stop_requested() is None, "the next job must not find it"


@LIVE
def test_one_owner_until_it_is_dead(row: Row, make: MakeRun) -> None:
    run = make(row)
    run.submit()
    run.running()
    owner = run.job
    named = f"attempt 0, process {owner.pid} on {socket.gethostname()}"
    with pytest.raises(UserError, match=re.escape(named)):
        run.submit()
    assert run.job == owner, "a refused submission leaves nothing"
    assert f"process {owner.pid} owns attempt 0" in run.backend.job_log(run.run)
    assert run.backend.run_on_node(run.run, owner, ["-c", "print(6 * 7)"]) == "42\n"
    kill(owner.pid, signal.SIGKILL)
    run.wait(lambda: not run.is_alive())
    assert state_of(run.run).state == "lost"
    run.submit(steps=run.steps(0) + 3)
    assert run.outcome().outcome == "completed", "its place is free again"
    run.nothing_left()


@HERE
def test_the_doctor_finds_no_fault_here(row: Row, tmp_path: Path) -> None:
    cluster = Cluster(name="here", scheduler=row.name, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    found = list(load_doctor(row.name).doctor(cluster, str(tmp_path), [1.0]))
    assert found and not [one for one in found if one.level == "error"], found
    assert all(one.fix for one in found if one.level != "ok")
