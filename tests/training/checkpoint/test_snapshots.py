"""The two slots of a rank: one is whole at every instant, and only what is whole and ours is gone on from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.host.environment import SLOTS
from launchyard.launcher.agent.memory import AgentMemory
from launchyard.run.append import Appender, complete_lines
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.rundir import RunDir
from launchyard.training.checkpoint import checkpointer, from_memory, snapshots
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import Restored
from launchyard.training.checkpoint.state import Shard, shards
from launchyard.training.distributed import read_world
from tests.training.checkpoint.test_checkpointer import IDENTITY, assert_same, claim, fresh, train_a_little

Learner = tuple[Any, Any]


class Killed(BaseException):
    """A worker ends here, and cleans nothing up."""


@pytest.fixture
def paths() -> Iterator[tuple[str, ...]]:
    memory = AgentMemory()
    yield tuple(memory.begin(1)[SLOTS].split())
    memory.empty()


def worker(run: RunDir, paths: tuple[str, ...], attempt: int, learner: Learner, heard: list[Any]) -> Checkpointer:
    """The checkpointer of one attempt, as a worker has it before it looks for a state."""
    world = replace(read_world(), attempt=attempt, slots=paths)
    if attempt not in run.attempts():
        claim(run, attempt)
    opened = Checkpointer(
        run,
        world,
        IDENTITY,
        keep=None,
        background=False,
        on_event=lambda name, **facts: heard.append((name, facts)),
    )
    opened.keep_in_memory(shards(*learner), 1)
    return opened


def take(opened: Checkpointer, learner: Learner, step: int, *, wait: bool = True) -> None:
    opened.snapshot(step, shards(*learner), {"step": step}, saving=False, unsettled=False)
    if wait and opened.snapshots is not None:
        opened.snapshots.settle(others=False)


def restored(
    run: RunDir, paths: tuple[str, ...], attempt: int, heard: list[Any] | None = None
) -> tuple[Restored | None, Learner]:
    learner = fresh()
    return worker(run, paths, attempt, learner, [] if heard is None else heard).restore(shards(*learner)), learner


def trained(times: int) -> Learner:
    learner = fresh()
    for _ in range(times):
        train_a_little(*learner)
    return learner


def test_the_newest_copy_is_gone_on_from(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    take(first, other, 2)
    found, learner = restored(run, paths, 1)
    assert found is not None and (found.step, found.source, found.train_state) == (2, "memory", {"step": 2})
    assert_same(other, learner)


def test_a_copy_that_was_cut_is_none_and_the_other_stays(
    tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    for step in (1, 2, 3):
        take(first, one, step)
    real, copied = snapshots.fill, []

    def cut(copy: torch.Tensor, tensor: torch.Tensor) -> None:
        copied.append(0)
        if len(copied) > 3:
            raise Killed
        real(copy, tensor)

    monkeypatch.setattr(snapshots, "fill", cut)
    with pytest.raises(Killed):
        take(first, other, 4)
    found, learner = restored(run, paths, 1)
    assert found is not None and found.step == 3
    assert_same(one, learner)


def test_a_copy_that_is_not_sealed_is_none(
    tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    goes_on, real = threading.Event(), snapshots.xxh3_of

    def hash_slowly(tensor: torch.Tensor) -> str:
        if threading.current_thread().name == "seal":
            goes_on.wait(60)
        return real(tensor)

    monkeypatch.setattr(snapshots, "xxh3_of", hash_slowly)
    take(first, other, 2, wait=False)
    assert first.votes(3)[1] == 1, "no rank may break a seal before this one is there"
    found, _ = restored(run, paths, 1)
    assert found is not None and found.step == 1
    goes_on.set()
    assert first.snapshots is not None
    first.snapshots.settle(others=False)


def test_while_a_checkpoint_is_written_its_slot_stays(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    first.save(2, shards(*other), {"step": 2}, "permanent")
    for step in (3, 4):
        first.snapshot(step, shards(*one), {"step": step}, saving=True, unsettled=False)
    assert first.snapshots is not None
    first.snapshots.settle(others=False)
    headers = [slot.header() for slot in snapshots.open_slots(paths)]
    assert {header.step for header in headers if header is not None} == {2, 4}


DAMAGED: dict[str, Callable[[int], int]] = {"tensor": lambda size: 4096 + 2, "header": lambda size: size - 9}


@pytest.mark.parametrize("where", DAMAGED)
def test_a_damaged_slot_is_passed_over(tmp_path: Path, paths: tuple[str, ...], where: str) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    take(first, other, 2)
    with open(paths[1], "r+b") as file:
        at = DAMAGED[where](file.seek(0, 2))
        file.seek(at)
        changed = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([changed]))
    heard: list[Any] = []
    found, learner = restored(run, paths, 1, heard)
    assert found is not None and found.step == 1
    assert_same(one, learner)
    assert [(name, facts["step"]) for name, facts in heard] == ([("snapshot damaged", 2)] if where == "tensor" else [])


def test_another_run_or_cut_is_not_ours(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one = RunDir(str(tmp_path)), trained(1)
    take(worker(run, paths, 0, one, []), one, 1)
    held = shards(*one)
    key = next(iter(held))
    for identity, cut in (
        (replace(IDENTITY, recipe_hash="other"), held),
        (replace(IDENTITY, run_id="other"), held),
        (IDENTITY, held | {key: replace(held[key], offsets=(1, 0))}),
        (IDENTITY, {name: shard for name, shard in held.items() if name != key}),
    ):
        late = Checkpointer(
            run, replace(read_world(), attempt=1, slots=paths), identity, keep=None, background=False,
            on_event=lambda *_, **__: None,
        )  # fmt: skip
        late.keep_in_memory(cut, 1)
        assert late.restore(cut) is None
    assert restored(run, paths, 0)[0] is None, "an attempt does not go on from itself"


def begun(run: RunDir, attempt: int, step: int, source: str) -> None:
    """On record, as a worker writes it."""
    event = {"event": "started", "step": step, "resumed": True, "source": source, "time": 1.0}
    Appender(run, f"{run.attempt_dir(attempt)}/events").add(event)


def test_no_step_leads_to_a_copy_once_an_attempt_began_before_it(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one = RunDir(str(tmp_path)), trained(1)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    take(first, one, 2)
    claim(run, 1)
    begun(run, 1, 1, "disk")  # it died before it could break a seal
    found, _ = restored(run, paths, 2)
    assert found is not None and found.step == 1
    assert restored(run, paths, 3)[0] is not None, "it forgot the later one, and kept this"


def test_what_came_after_a_rewind_is_forgotten(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one = RunDir(str(tmp_path)), trained(1)
    first = worker(run, paths, 0, one, [])
    take(first, one, 1)
    take(first, one, 2)
    first.drop_after(1)
    found, _ = restored(run, paths, 1)
    assert found is not None and found.step == 1


def test_one_that_was_due_is_not_skipped(
    tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved again at its own step; and once it is there, or has failed, the newest copy is as good."""
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 4)
    monkeypatch.setattr(first, "_write", lambda save, staged: None)  # it is on its way, and never comes
    first.save(5, shards(*other), {"step": 5}, "permanent")
    first.snapshot(6, shards(*one), {"step": 6}, saving=True, unsettled=False)
    found, learner = restored(run, paths, 1)
    assert found is not None and found.step == 5
    assert_same(other, learner)


def test_a_checkpoint_that_is_newer_is_taken(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one, other = RunDir(str(tmp_path)), trained(1), trained(2)
    first = worker(run, paths, 0, one, [])
    take(first, one, 4)
    without = Checkpointer(run, read_world(), IDENTITY, keep=None, background=False, on_event=lambda *_, **__: None)
    without.save(5, shards(*other), {"step": 5}, "permanent")
    found, learner = restored(run, paths, 1)
    assert found is not None and (found.step, found.source) == (5, "disk")
    assert_same(other, learner)


def test_lines_that_were_not_written_are_there_once(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    lines = [f'{{"step": {step}, "time": {step}}}\n' for step in range(6)]
    run.write_text("metrics/steps-0000.jsonl", "".join(lines[:3]))
    for tail in (lines[1:5], lines[1:5], lines[4:]):
        complete_lines(run, "metrics/steps-0000", tail)
    assert run.read_text("metrics/steps-0000.jsonl") == "".join(lines)


def test_a_start_from_memory_is_no_checkpoint_that_is_missed(tmp_path: Path, paths: tuple[str, ...]) -> None:
    run, one = RunDir(str(tmp_path)), trained(1)
    first = worker(run, paths, 0, one, [])
    first.save(5, shards(*one), {"step": 5}, "permanent")
    begun(run, 0, 0, "")
    Appender(run, f"{run.attempt_dir(0)}/events").add({"event": "saved", "step": 5, "time": 2.0})
    claim(run, 1)
    begun(run, 1, 7, "memory")
    assert RunCheckpoints(run).missing() is None and RunCheckpoints(run).newest() == 5
    claim(run, 2)
    begun(run, 2, 3, "memory")
    assert RunCheckpoints(run).newest() is None, "it went on from before that"


def test_all_kinds_of_tensors_come_back(paths: tuple[str, ...]) -> None:
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
    tensors = {str(kind): torch.arange(7).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4), "turned": torch.arange(6.0).reshape(2, 3).T}
    held = {key: Shard(tuple(tensor.shape), (0,) * tensor.ndim, tensor, writes=True) for key, tensor in tensors.items()}
    taken = snapshots.Snapshots(snapshots.open_slots(paths), {}, 0, held, print)
    taken.copy(held, snapshots.Told(1, {"nan": float("nan")}), save=False, saving=False)
    taken.settle(others=False)
    empty = {key: replace(shard, tensor=torch.zeros_like(shard.tensor)) for key, shard in held.items()}
    again = snapshots.Snapshots(snapshots.open_slots(paths), {}, 1, empty, print)
    assert again.fault(1) == ""
    again.load(1, empty)
    for key, tensor in tensors.items():
        assert torch.equal(empty[key].tensor.float(), tensor.float()), key


# -- with copies on another node -------------------------------------------------------------------------------------
class Neighbour:
    """In place of an agent that copies the slots of its worker to another node."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._slots = snapshots.open_slots(paths)
        for slot in self._slots:
            slot.await_copies(True)

    def copy(self) -> None:
        for slot in self._slots:
            slot.note_copy(slot.sealed_by())

    def steps(self) -> set[int | None]:
        return {slot.step() for slot in self._slots}


def test_a_copy_waits_for_the_neighbours_and_what_they_have_stays(tmp_path: Path, paths: tuple[str, ...]) -> None:
    neighbour, one = Neighbour(paths), trained(1)
    first = worker(RunDir(str(tmp_path)), paths, 0, one, [])
    assert first.snapshots is not None
    take(first, one, 1)
    assert first.votes(2) == [1, 1, 0], "it is not settled before they have it"
    neighbour.copy()
    assert first.votes(2) == [1, 0, 0]
    first.snapshot(2, shards(*one), {"step": 2}, saving=False, unsettled=False)
    assert first.snapshots.copied == 1
    for step in (3, 4, 5):  # checkpoints are due, and do not wait
        first.save(step, shards(*one), {"step": step}, "permanent")
        first.snapshots.settle(others=True)
        assert neighbour.steps() == {1, step}
    neighbour.copy()
    first.save(6, shards(*one), {"step": 6}, "permanent")
    first.snapshots.settle(others=True)
    assert neighbour.steps() == {5, 6}


def test_steps_that_were_asked_for_wait_for_a_slow_neighbour_for_a_while(
    tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour, one = Neighbour(paths), trained(1)
    first = worker(RunDir(str(tmp_path)), paths, 0, one, [])
    take(first, one, 1)
    late = threading.Timer(0.3, neighbour.copy)
    late.start()
    first.snapshot(2, shards(*one), {"step": 2}, saving=False, unsettled=True)
    assert first.snapshots is not None and first.snapshots.copied == 1
    monkeypatch.setattr(checkpointer, "COPIED_SECONDS", 0.1)
    first.snapshot(3, shards(*one), {"step": 3}, saving=False, unsettled=True)
    first.snapshots.settle(others=True)
    assert neighbour.steps() == {1, 3}, "it is not overwritten for one that they do not have"


def test_one_step_made_twice_is_not_the_same(tmp_path: Path, paths: tuple[str, ...]) -> None:
    """A neighbour may still have the first one."""
    one = trained(1)
    first = worker(RunDir(str(tmp_path)), paths, 0, one, [])
    take(first, one, 4)
    places = [slot.header() for slot in snapshots.open_slots(paths)]
    first.drop_after(2)
    take(first, one, 4)
    places += [slot.header() for slot in snapshots.open_slots(paths)]
    assert len({header.place for header in places if header is not None}) == 2


@pytest.mark.parametrize(
    ("held", "others", "words"),
    [
        ([[], []], [], ""),
        ([[(4, 0, 0)], []], [], "of rank 1: its node was lost, and no neighbour had a copy"),
        ([[(4, 0, 0)], [(5, 0, 0)]], [], "no step is in the memory of all ranks"),
        ([[], []], [3], "a state of 3 workers, and there are 2 now"),
    ],
)
def test_what_memory_cannot_give_is_said(held: list[Any], others: list[int], words: str) -> None:
    assert words in (said := from_memory.why_none(held, others, 2))
    assert bool(words) == bool(said)
