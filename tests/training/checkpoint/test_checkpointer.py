"""Checkpoints: whole or not there, the same tensors for any number of ranks, and never a damaged one."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from launchyard.launcher.runs.checkpoints import list_saved
from launchyard.run.append import Appender
from launchyard.run.checkpoints import committed_steps
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.shards import MANIFEST, read_manifest, read_tensor, verify
from launchyard.training.checkpoint import parts
from launchyard.training.checkpoint.checkpointer import Checkpointer
from launchyard.training.checkpoint.commit import FencedError, Identity, NoValidCheckpointError
from launchyard.training.checkpoint.retention import superfluous
from launchyard.training.checkpoint.state import shards
from launchyard.training.distributed import connect, disconnect, read_world
from launchyard.training.optim.base import Optimizer
from launchyard.training.optim.optimizers import make_optimizer
from launchyard.training.sections.optimizer import OptimizerConfig
from tests.support.ranks import run_ranks

IDENTITY = Identity(model={"dim": 4}, data_digest="d", recipe_hash="r", versions={})


def toy() -> nn.Module:
    """Sizes that no number of ranks divides, a tensor with fewer rows than ranks, and a scalar."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 3), nn.LayerNorm(3))
    model.register_parameter("gain", nn.Parameter(torch.ones(1)))
    return model


def train_a_little(model: nn.Module, optimizer: Optimizer) -> None:
    for step in range(3):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        (model(x).square().sum() * model.gain.sum()).backward()
        optimizer.step(step + 1, 0.01)
        optimizer.zero_grad()


def checkpointer(run: RunDir, events: list[Any] | None = None, *, attempt: int = 0, **given: Any) -> Checkpointer:
    heard = events if events is not None else []
    options = {
        "keep": None,
        "background": False,
        "on_event": lambda name, **facts: heard.append((name, facts)),
        **given,
    }
    return Checkpointer(run, replace(read_world(), attempt=attempt), IDENTITY, **options)


def claim(run: RunDir, attempt: int) -> None:
    facts: dict[str, Any] = {"host": "h", "pid": 1, "pid_started": 0, "created": 0, "nnodes": 1, "nproc_per_node": 1}
    run.claim_attempt(Job(attempt=attempt, backend="local", job_id="1", device="cpu", **facts))


def saved(run: RunDir, *steps: int, **given: Any) -> tuple[nn.Module, Optimizer]:
    model = toy()
    optimizer = make_optimizer(model, OptimizerConfig())
    train_a_little(model, optimizer)
    writer = checkpointer(run, **given)
    for step in steps:
        writer.save(step, shards(model, optimizer), {"step": step}, "permanent")
        writer.wait(must_succeed=True)
    return model, optimizer


def fresh() -> tuple[nn.Module, Optimizer]:
    model = toy()
    return model, make_optimizer(model, OptimizerConfig())


def assert_same(mine: Any, theirs: Any) -> None:
    one, other = shards(*mine), shards(*theirs)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key].tensor, other[key].tensor), key


@pytest.mark.parametrize("background", [True, False])
def test_what_was_saved_is_loaded(tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIECE_BYTES", 64)  # several pieces a tensor
    run = RunDir(str(tmp_path))
    trained = saved(run, 5, background=background)
    loaded = fresh()
    manifest = checkpointer(run).load_newest(shards(*loaded))
    assert manifest is not None and manifest.train_state == {"step": 5}
    assert_same(trained, loaded)
    assert all(bool(entry.tensor.any()) for entry in loaded[1].state(loaded[0].gain).values())  # the moments came along
    assert list(verify(run.path(run.checkpoint_dir(5)), manifest)) == []


def test_weights_may_change_while_a_save_is_in_flight(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    model, optimizer = fresh()
    train_a_little(model, optimizer)
    before = {key: shard.tensor.clone() for key, shard in shards(model, optimizer).items()}
    writer = checkpointer(run, background=True)
    writer.save(1, shards(model, optimizer), {"step": 1}, "permanent")
    train_a_little(model, optimizer)
    writer.wait(must_succeed=True)
    folder = run.path(run.checkpoint_dir(1))
    manifest = read_manifest(folder)
    assert all(torch.equal(read_tensor(folder, manifest, key), value) for key, value in before.items())


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "changed: the hash of model.0.weight": lambda path: flip(
        path, read_manifest(str(path.parent)).files[path.name].header_bytes + 60
    ),
    "changed: the hash of the hashes": lambda path: flip(path, -20),
    "changed: the hash of its header": lambda path: flip(path, 20),
    "it is changed": lengthen,
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "manifest": lambda path: (path.parent / MANIFEST).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, damage: str) -> None:
    run, events = RunDir(str(tmp_path)), []
    trained = saved(run, 5, 10)
    (path,) = (tmp_path / "checkpoints" / "step-00000010").glob("*.safetensors")
    DAMAGE[damage](path)
    loaded = fresh()
    manifest = checkpointer(run, events).load_newest(shards(*loaded))
    assert manifest is not None and manifest.step == 5
    assert_same(trained, loaded)
    ((name, facts),) = events
    assert name == "fell back" and facts["step"] == 10
    assert (MANIFEST if damage == "manifest" else path.name) in facts["message"]
    assert damage in facts["message"]


@pytest.mark.parametrize("kind", ["manifest", "file"])
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, kind: str) -> None:
    """Also where it would still be read: a digit of the manifest, the name of a tensor. By a look and by a load."""
    run, rng = RunDir(str(tmp_path)), random.Random(kind)
    trained, folder = saved(run, 5, 10), tmp_path / "checkpoints/step-00000010"
    (path,) = folder.glob("manifest.json" if kind == "manifest" else "*.safetensors")
    whole = path.read_bytes()
    for at in [0, 8, 60, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        raw = bytearray(whole)
        raw[at] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        faults = list_saved(run, verify_all=True)[-1].faults
        assert len(faults) == 1 and str(path) in faults[0], at
        events: list[Any] = []
        loaded = fresh()
        manifest = checkpointer(run, events).load_newest(shards(*loaded))
        assert manifest is not None and manifest.step == 5, at
        assert path.name in events[0][1]["message"]
    assert_same(trained, loaded)


def test_nothing_whole_left_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    saved(run, 5)
    for path in (tmp_path / "checkpoints").glob("*/*.safetensors"):
        flip(path, -1)
    with pytest.raises(NoValidCheckpointError, match="none of the 1 checkpoints is intact"):
        checkpointer(run).load_newest(shards(*fresh()))


def test_without_a_manifest_there_is_no_checkpoint(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    saved(run, 5, 10)
    os.unlink(tmp_path / "checkpoints" / "step-00000010" / MANIFEST)
    assert committed_steps(run) == [5]
    checkpointer(run).cleaner.sweep()
    assert run.listdir("checkpoints") == ["latest.json", "step-00000005"]


def test_a_late_commit_of_an_older_attempt_counts_for_nothing(tmp_path: Path) -> None:
    """It looked, was taken over from before it, and wrote its manifest all the same: rows and weights ignore it."""
    run, events = RunDir(str(tmp_path)), []
    trained = saved(run, 5)
    saved(run, 10)
    claim(run, 0)
    claim(run, 1)
    Appender(run, f"{run.attempt_dir(1)}/events").add({"event": "started", "step": 5, "time": 1.0})
    loaded = fresh()
    manifest = checkpointer(run, events, attempt=2).load_newest(shards(*loaded))
    assert manifest is not None and manifest.step == 5
    assert_same(trained, loaded)
    assert [name for name, _ in events] == ["passed over"]
    saved(run, 10, attempt=2)  # the run comes there itself, and its own counts
    assert run.read_json(f"{run.checkpoint_dir(10)}/{MANIFEST}")["attempt"] == 2


def test_what_a_newer_attempt_is_writing_is_never_swept(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    folder = tmp_path / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    names = ["0001-rank-00000.safetensors", "0002-rank-00000.safetensors", "0003-rank-00000.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"x")
    checkpointer(run, attempt=2).cleaner.sweep()
    assert run.listdir("checkpoints/step-00000007") == names[2:]


def test_an_older_attempt_cannot_commit(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    claim(run, 0)
    claim(run, 1)
    with pytest.raises(FencedError, match="attempt 1 has taken over"):
        saved(run, 5)
    assert committed_steps(run) == []


def shard_files(run: RunDir) -> list[str]:
    return sorted(path.name for path in Path(run.url).glob("checkpoints/*/*.safetensors"))


def test_who_was_taken_over_takes_its_files_along(tmp_path: Path) -> None:
    """Whoever has the run now may have swept before they were there."""
    run = RunDir(str(tmp_path))
    claim(run, 0)
    claim(run, 1)
    with pytest.raises(FencedError):
        saved(run, 5)
    assert shard_files(run) == []


def test_who_was_taken_over_in_its_commit_removes_nothing(tmp_path: Path) -> None:
    """Its commit may have come too late to count; then what it makes superfluous is all there is to fall back on."""

    class TakenOver(RunDir):
        def create_text(self, name: str, text: str) -> None:
            super().create_text(name, text)
            if name == f"{self.checkpoint_dir(15)}/{MANIFEST}":
                claim(self, 1)

    run = TakenOver(str(tmp_path))
    claim(run, 0)
    with pytest.raises(FencedError):
        saved(run, 5, 10, 15, keep=2)
    assert committed_steps(run) == [5, 10, 15]


def test_what_a_killed_attempt_still_had_on_its_way_is_swept_too(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    claim(run, 0)
    claim(run, 1)
    model, optimizer = fresh()
    writer = checkpointer(run, attempt=1)
    assert writer.cleaner.sweep()
    late = tmp_path / "checkpoints/step-00000007/0000-rank-00000.safetensors"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"x")
    writer.save(5, shards(model, optimizer), {"step": 5}, "permanent")
    writer.wait(must_succeed=True)
    assert shard_files(run) == ["0001-rank-00000.safetensors"]


def test_saving_waits_for_cleaning_and_training_for_neither(tmp_path: Path) -> None:
    """Beside a save it would take files that are being written for leftovers."""
    run = RunDir(str(tmp_path))
    model, optimizer = fresh()
    writer = checkpointer(run, background=True)
    blocked, budgets = threading.Event(), list[float]()
    writer.clean_aside(lambda: (budgets.append(retry.current_retry_budget()), blocked.wait(20)))
    writer.save(5, shards(model, optimizer), {"step": 5}, "permanent")
    time.sleep(0.2)
    assert writer.busy and committed_steps(run) == [] and budgets == [0]
    blocked.set()
    writer.wait(must_succeed=True)
    assert committed_steps(run) == [5]


class Lagging(RunDir):
    """A store that lists late."""

    def listdir(self, name: str) -> list[str]:
        return [] if name.startswith("checkpoints/step-") else super().listdir(name)


def test_a_checkpoint_is_removed_though_a_listing_does_not_show_it(tmp_path: Path) -> None:
    saved(Lagging(str(tmp_path)), 5, 10, 15, keep=1)
    assert committed_steps(RunDir(str(tmp_path))) == [10, 15]
    assert len(shard_files(RunDir(str(tmp_path)))) == 2


def checkpointer_of(run: RunDir, model: dict[str, Any]) -> Checkpointer:
    return Checkpointer(
        run,
        read_world(),
        Identity(model, "d", "r", {}),
        keep=None,
        background=False,
        on_event=lambda *_, **__: None,
    )


@pytest.mark.parametrize("model", [{"dim": 5}, {"dim": 4, "attention_bias": True}])
def test_another_model_is_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    run = RunDir(str(tmp_path))
    saved(run, 5)
    with pytest.raises(ValueError, match="another model"):
        checkpointer_of(run, model).load_newest(shards(*fresh()))


def test_a_checkpoint_from_before_a_knob_is_of_the_same_model(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    saved(run, 5)
    loaded = checkpointer_of(run, {"dim": 4, "attention_bias": False}).load_newest(shards(*fresh()))
    assert loaded is not None


@given(
    kinds=st.dictionaries(st.integers(1, 60), st.sampled_from(["permanent", "temporary", "unreadable"]), min_size=1),
    keep=st.one_of(st.none(), st.integers(1, 4)),
)
def test_retention_never_takes_the_last_two_nor_what_it_cannot_read(kinds: dict[int, str], keep: int | None) -> None:
    newest = max(kinds)
    gone = superfluous(kinds, newest=newest, keep=keep)
    left = sorted(set(kinds) - set(gone))
    assert sorted(kinds)[-2:] == left[-2:]
    assert all(kinds[step] != "unreadable" for step in gone)
    if keep is None:
        assert all(kinds[step] == "temporary" for step in gone)
    assert sum(kinds[step] == "temporary" for step in left) <= 2


@given(
    kinds=st.dictionaries(st.integers(1, 60), st.sampled_from(["permanent", "temporary"]), min_size=1),
    keep=st.one_of(st.none(), st.integers(1, 4)),
    reach=st.integers(1, 30),
)
def test_a_run_that_may_go_back_can_always_do_so(kinds: dict[int, str], keep: int | None, reach: int) -> None:
    """After each of its saves, as far as it had saved at all."""
    left: dict[int, str] = {}
    for newest in sorted(kinds):
        left[newest] = kinds[newest]
        for step in superfluous(left, newest=newest, keep=keep, reach=reach):
            del left[step]
        assert any(step <= newest - reach for step in left) == any(step <= newest - reach for step in kinds)


def _save_and_load(folder: str, save: int | None, load: int | None) -> None:
    """One rank: load a step if asked, check it against the single process' result, save the next."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    parts.PIECE_BYTES = 64
    world, run = read_world(), RunDir(folder)
    connect(world, torch.device("cpu"))
    expected = fresh()
    train_a_little(*expected)
    model, optimizer = toy(), None
    fully_shard(model, mesh=init_device_mesh("cpu", (world.world_size,), mesh_dim_names=("dp_shard",)))
    optimizer = make_optimizer(model, OptimizerConfig())
    writer = checkpointer(run, background=True)
    if load is not None:
        manifest = writer.load_newest(shards(model, optimizer))
        assert manifest is not None and manifest.step == load
        whole = shards(*expected)
        for key, shard in shards(model, optimizer).items():
            box = tuple(slice(at, at + n) for at, n in zip(shard.offsets, shard.tensor.shape, strict=True))
            assert torch.equal(whole[key].tensor[box], shard.tensor), key
    if save is not None:
        writer.save(save, shards(model, optimizer), {"step": save}, "permanent")
        writer.wait(must_succeed=True)
    disconnect()


def test_any_number_of_ranks_to_any_other(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    trained = saved(run, 1)
    for step, world_size in enumerate((3, 2), start=2):
        run_ranks(world_size, _save_and_load, str(tmp_path), step, step - 1)
    manifest = read_manifest(run.path(run.checkpoint_dir(3)))
    assert manifest.world_size == 2 and len(manifest.files) == 2
    loaded = fresh()
    checkpointer(run).load_newest(shards(*loaded))
    assert_same(trained, loaded)
