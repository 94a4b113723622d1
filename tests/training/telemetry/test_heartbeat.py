"""The watchdog: who is hung is named, and not who waits for him; with stacks, and the run goes on without him."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.host.processes import descendants, end_all, end_marked, marked, worker_rank
from launchyard.launcher.agent.hang_detector import Hang
from launchyard.launcher.backends.local import backend
from launchyard.launcher.runs.why import explain
from launchyard.run.rundir import RunDir
from launchyard.training.telemetry.heartbeat import FLOOR_SECONDS, Limits, Pulse, PulseWriter, find_hang, read_pulses
from launchyard.training.telemetry.phases import PHASES, PhaseClock
from tests.support.small_runs import make_run, write_data
from tests.support.standin import PlannedHere

ROOT = Path(__file__).parents[3]


def pulse(rank: int, *, age: float = 0.0, waiting: bool = False, collectives: int = 0, limit: float = 10.0) -> Pulse:
    """As seen at time 100."""
    phase = "collective_wait" if waiting else "forward_backward"
    return Pulse(rank, 1000 + rank, phase, 7, waiting, collectives, 100 - age, 100 - age, limit, limit)


def hung(pulses: list[Pulse], **more: Any) -> list[int] | None:
    report = find_hang(pulses, 100.0, **more)
    return None if report is None else [one.rank for one in report.hung]


# -- pure ---
def test_who_waits_is_a_victim() -> None:
    assert hung([pulse(0, age=50, waiting=True), pulse(1, age=50), pulse(2, age=50, waiting=True)]) == [1]


def test_nobody_is_hung_while_he_that_works_has_time_left() -> None:
    assert hung([pulse(0, age=50, waiting=True), pulse(1, age=5)]) is None
    assert hung([pulse(0, age=50, waiting=True), pulse(1, age=50, limit=1800)]) is None
    assert hung([pulse(0, age=9), pulse(1, age=9)]) is None
    assert hung([pulse(0, age=1e9, limit=0), pulse(1, age=1e9, limit=0)]) is None  # not watched


def test_a_stopped_rank_is_named_though_its_limit_is_far_or_it_waits() -> None:
    assert hung([pulse(0, age=50, waiting=True), pulse(1, age=30, limit=1800)], stopped=[1]) == [1]
    assert hung([pulse(0, age=50, waiting=True), pulse(1, age=50, waiting=True)], stopped=[1]) == [1]


def test_where_all_wait_the_one_behind_is_named() -> None:
    waiting = [pulse(rank, age=50, waiting=True, collectives=8) for rank in range(3)]
    report = find_hang(waiting, 100.0)
    assert report is not None and report.hung == () and report.all_wait
    waiting[1] = pulse(1, age=50, waiting=True, collectives=7)
    assert hung(waiting) == [1]


@given(
    st.lists(
        st.builds(pulse, st.integers(0, 9), age=st.floats(0, 99), waiting=st.booleans(), collectives=st.integers(0, 3)),
        min_size=1,
        max_size=5,
        unique_by=lambda one: one.rank,
    )
)
def test_only_who_is_overdue_is_ever_named(pulses: list[Pulse]) -> None:
    named = hung(pulses) or []
    assert all(one.overdue(100.0) for one in pulses if one.rank in named)
    working = [one for one in pulses if not one.waiting]
    if any(one.overdue(100.0) for one in working):
        assert set(named) == {one.rank for one in working if one.overdue(100.0)}


def test_limits_follow_the_steps() -> None:
    limits = Limits(step_seconds=None, slow_seconds=1800)
    assert limits.of("forward_backward") == (1800, 1800)  # it may compile
    limits.add_step(200.0)
    limits.add_step(0.1)
    limits.add_step(0.1)
    assert limits.of("forward_backward") == (FLOOR_SECONDS, FLOOR_SECONDS)
    assert limits.of("data_wait") == (FLOOR_SECONDS, 1800)  # a sign now and then, however long it takes
    assert limits.of("validation") == (1800, 1800)
    slow = Limits(step_seconds=None, slow_seconds=1800, retry_seconds=900)
    for _ in range(40):
        slow.add_step(20.0)
    assert slow.of("optimizer")[0] == 200.0
    assert slow.of("checkpoint_blocking")[0] == 2700.0  # three times the retry budget
    fixed = Limits(step_seconds=3.0, slow_seconds=1800)
    fixed.add_step(1.0)
    assert fixed.of("other")[0] == 3.0


def test_signs_are_read_as_they_were_written(tmp_path: Path) -> None:
    limits = Limits(step_seconds=5.0, slow_seconds=60.0)
    writer = PulseWriter(str(tmp_path), 3, limits)
    clock = PhaseClock(observer=writer)
    (first,) = read_pulses(str(tmp_path))
    assert (first.rank, first.pid, first.phase, first.waiting) == (3, os.getpid(), "init", False)
    writer.stepped(12, 0.5)
    clock.enter("forward_backward")
    with clock.waits():
        (inside,) = read_pulses(str(tmp_path))
        assert (inside.phase, inside.step, inside.waiting, inside.limit) == ("collective_wait", 12, True, 5.0)
    (after,) = read_pulses(str(tmp_path))
    assert not after.waiting and after.phase == "forward_backward" and after.collectives == 1
    assert time.monotonic() - after.beat < 5
    time.sleep(0.01)
    writer.beat()
    (alive,) = read_pulses(str(tmp_path))
    assert alive.beat > after.beat and alive.since == after.since
    for phase in PHASES:
        clock.enter(phase)
        assert read_pulses(str(tmp_path))[0].phase == phase
    writer.close()
    assert read_pulses(str(tmp_path)) == []


def test_an_unknown_file_is_nobodys_sign(tmp_path: Path) -> None:
    (tmp_path / "pulse-00000").write_bytes(b"short")
    (tmp_path / "pulse-00001").write_bytes(bytes(96))
    assert read_pulses(str(tmp_path)) == []


# -- the agents ---
def waiting_node(folder: Path, run: RunDir, node: int, nnodes: int, collectives: int = 1) -> Hang:
    """An agent whose only worker (this process) waits in a collective, and has done so for too long."""
    scratch = folder / f"node-{node}"
    scratch.mkdir()
    writer = PulseWriter(str(scratch), node, Limits(step_seconds=0.05, slow_seconds=0.05))
    for _ in range(collectives):
        writer.enter("collective_wait", time.monotonic() - 1.0, True)
    hang = Hang(run, 0, node, nnodes, str(scratch))
    hang._stacks = lambda pulses: {}  # type: ignore[assignment,method-assign]  # pytest has no use for QUIT
    return hang


def looks(hang: Hang, times: int = 1) -> list[bool]:
    found = []
    for _ in range(times):
        hang._checked_at -= 1.5
        found.append(hang.check())
    return found


def test_a_node_whose_workers_all_wait_blames_none_of_them_while_another_may_work(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    one, zero = waiting_node(tmp_path, run, 1, 2), waiting_node(tmp_path, run, 0, 2)
    assert looks(one, 3) == [False] * 3
    assert run.errors(0) == []
    assert looks(zero, 2) == [False, True]  # both have said it now
    assert [error["rank"] for error in run.errors(0)] == [0]
    assert looks(one, 3) == [False] * 3  # one agent is enough


def test_all_workers_of_the_only_node_wait_for_each_other(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    hang = waiting_node(tmp_path, run, 0, 1)
    assert looks(hang, 2) == [False, True]  # never at first sight
    assert hang.found is not None and "in collective wait" in hang.found


def test_an_agent_that_was_away_itself_judges_nobody(tmp_path: Path) -> None:
    """The whole machine slept, or all of the job was stopped for a while."""
    run = RunDir(str(tmp_path / "run"))
    hang = waiting_node(tmp_path, run, 0, 1)
    hang._checked_at -= 100.0
    assert not hang.check()
    assert looks(hang, 3) == [False] * 3
    hang._settled = 0.0
    assert looks(hang, 2) == [False, True]


def test_who_waits_for_a_file_server_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a system call that nothing interrupts: ending the attempt would not end the process."""
    run = RunDir(str(tmp_path / "run"))
    hang = waiting_node(tmp_path, run, 0, 1)
    monkeypatch.setattr("launchyard.launcher.agent.hang_detector._state", lambda pid: "D")
    assert looks(hang, 4) == [False] * 4
    monkeypatch.setattr("launchyard.launcher.agent.hang_detector.KERNEL_SECONDS", 1e-6)
    assert looks(hang, 2) == [False, True]


def test_a_dead_worker_is_not_hung(tmp_path: Path) -> None:
    """torchrun sees to it."""
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0 and len(read_pulses(str(tmp_path))) == 1
    hang = Hang(RunDir(str(tmp_path / "run")), 0, 0, 1, str(tmp_path))
    assert looks(hang, 3) == [False] * 3


DIES = """
import sys, time
from launchyard.training.telemetry.heartbeat import Limits, PulseWriter
limits = Limits(step_seconds=0.01, slow_seconds=0.01)
PulseWriter(sys.argv[1], 0, limits).enter("optimizer", time.monotonic() - 9, False)
"""


# -- for real ---
class Harmed:
    """A run of two workers under the real owner, agent and torchrun, one of which comes to harm."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.pids = folder, set[int]()
        self.run = RunDir(str(folder / "run"))

    def start(self, harm: dict[str, Any] | None, workers: int = 2, **overrides: Any) -> None:
        recipe = {"train.max_steps": 30, "watchdog.step_seconds": 3.0} | overrides
        make_run(self._folder / "run", write_data(self._folder / "data"), recipe)
        env = {"HARM": json.dumps(harm), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        plan = PlannedHere(workers, environment=env)
        job = backend.submit(self.run, plan, {}, worker_module="tests.support.hanging")
        self.pids.add(job.pid)

    def wait(self, done: Callable[[], Any], seconds: float = 90.0) -> Any:
        end = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < end, self.looks()
            time.sleep(0.05)
        return value

    def looks(self) -> str:
        return "\n".join(f"--- {path}\n{path.read_text()}" for path in Path(self.run.url).rglob("*.log"))

    def log(self, rank: int) -> str:
        return Path(self.run.path(f"attempts/0000/logs/rank-{rank:05d}.log")).read_text()

    def pid_of(self, rank: int) -> int:
        workers = [one for one in marked(self.run.url) if worker_rank(one) == rank]
        return max(workers, key=lambda one: one.create_time()).pid

    def check(self, rank: int, words: str, resumed: bool = True) -> None:
        """The hung rank is named, and no other; all stacks are in the logs; the run goes on to its end."""
        record = self.wait(lambda: self.run.outcome(0))
        assert (record.outcome, record.reason, record.rank) == ("failed", "hung", rank), (record, self.looks())
        assert re.search(words, record.message), record.message
        hangs = [error for error in self.run.errors(0) if error["type"] == "HungError"]
        assert [error["rank"] for error in hangs] == [rank]
        for one in (0, 1):
            assert "most recent call first" in self.log(one)
        final = self.wait(self.run.outcome)
        assert (final.outcome, final.step, final.attempt) == ("completed", 30, 1)
        assert "hung" in explain(self.run).text

    def close(self) -> None:
        for pid in self.pids:
            end_all(descendants(pid))
        end_marked(self.run.url)


@pytest.fixture
def harmed(tmp_path: Path) -> Iterator[Harmed]:
    run = Harmed(tmp_path)
    try:
        yield run
    finally:
        run.close()


@pytest.mark.slow
def test_an_endless_loop(harmed: Harmed) -> None:
    """Its victim waits in a collective, and is not named."""
    harmed.start({"rank": 1, "kind": "loop", "step": 12})
    harmed.check(1, r"after step 11, in forward backward \(limit 3 s\); it is at hanging.py:\d+ in spin_for_ever")


@pytest.mark.slow
def test_rank_zero_asleep(harmed: Harmed) -> None:
    harmed.start({"rank": 0, "kind": "sleep", "step": 12})
    harmed.check(0, r"hanging.py:\d+ in harmed")


@pytest.mark.slow
def test_a_stopped_process(harmed: Harmed) -> None:
    """It cannot say anything itself."""
    harmed.start({"rank": 1, "kind": "slow", "step": 1, "until": 30, "seconds": 0.1})
    harmed.wait(lambda: len(list(harmed.run.rows("steps"))) >= 8)
    os.kill(harmed.pid_of(1), signal.SIGSTOP)
    harmed.check(1, r"its process is stopped \(SIGSTOP\)")


@pytest.mark.slow
def test_a_slow_rank_is_named_and_goes_on(harmed: Harmed) -> None:
    harmed.start(
        {"rank": 1, "kind": "slow", "step": 1, "until": 50, "seconds": 0.05},
        **{"train.max_steps": 60, "checkpoint.every_steps": 60},
    )
    record = harmed.wait(harmed.run.outcome)
    assert (record.outcome, record.attempt) == ("completed", 0), harmed.looks()
    slow, *_ = [event for event in harmed.run.events(0) if "straggler" in event["event"]]
    assert (slow["event"], slow["rank"]) == ("straggler", 1)
    assert slow["ratio"] > 1.3 and slow["seconds"] > 0.05


@pytest.mark.slow
def test_without_a_watchdog_nobody_is_named(harmed: Harmed) -> None:
    harmed.start({"rank": 1, "kind": "loop", "step": 12}, **{"watchdog.enabled": False, "watchdog.step_seconds": 0.5})
    harmed.wait(lambda: len(list(harmed.run.rows("steps"))) >= 11)
    time.sleep(4)
    assert harmed.run.outcome(0) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "stop"])
def test_within_a_minute_as_it_comes(harmed: Harmed, kind: str) -> None:
    """The default limits: named, with stacks, within 60 s."""
    harmed.start({"rank": 1, "kind": "loop" if kind == "loop" else "none", "step": 12},
                 **{"watchdog.step_seconds": None, "train.max_steps": 100_000})  # fmt: skip
    harmed.wait(lambda: len(list(harmed.run.rows("steps"))) >= 11)
    if kind == "stop":
        os.kill(harmed.pid_of(1), signal.SIGSTOP)
    began = time.monotonic()
    harmed.wait(lambda: harmed.run.outcome(0))
    assert time.monotonic() - began < 60
    (error, *_) = harmed.run.errors(0)
    assert (error["type"], error["rank"]) == ("HungError", 1)
