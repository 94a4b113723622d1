"""Checkpoints of a run: stage, write in the background, commit, retain; and load the newest intact one.

A checkpoint exists from the moment its manifest is written, and the manifest is written last. Before it is removed,
its manifest goes first (retention.py). Knows nothing of models, data or steps beyond their numbers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from launchyard.host.priority import step_back
from launchyard.model.config import same_knobs
from launchyard.run import events, layout
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.layout import LATEST
from launchyard.run.records import FROM_DISK, FROM_MEMORY
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.damage import JsonObject
from launchyard.storage.errors import CorruptError, StoreError
from launchyard.storage.layouts import Joined
from launchyard.storage.shards import (
    MANIFEST,
    FileEntry,
    LogEntry,
    Manifest,
    TensorEntry,
    read_manifest,
    sealed,
)
from launchyard.training.checkpoint import parts
from launchyard.training.checkpoint.cleaning import Cleaner
from launchyard.training.checkpoint.commit import (
    CheckpointKind,
    FencedError,
    Identity,
    NoValidCheckpointError,
    Restored,
    Save,
    check_owner,
    fenced,
)
from launchyard.training.checkpoint.from_memory import load_newest_snapshot, open_snapshots
from launchyard.training.checkpoint.save_timer import SnapshotTimer
from launchyard.training.checkpoint.snapshots import COPIED_SECONDS, Snapshots, Told
from launchyard.training.checkpoint.state import Shard
from launchyard.training.checkpoint.together import Together
from launchyard.training.distributed import World, from_rank_zero, host_group, is_connected
from launchyard.training.telemetry.events import OnEvent


class Checkpointer:
    """Saves and loads the checkpoints of one run. At most one save is in flight.

    `on_event(name, **facts)` is called with each event; `before_commit()` runs on rank 0 before a manifest is written.
    `rows()` returns the entries of this attempt's row files, for the manifest.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        identity: Identity,
        *,
        keep: int | None,
        background: bool,
        on_event: OnEvent,
        before_commit: Callable[[], None] = lambda: None,
        rows: Callable[[], dict[str, LogEntry]] = dict,
    ) -> None:
        self.run = run
        self._world = world
        self._identity = identity
        self._background = background
        self._on_event = on_event
        self._before_commit = before_commit
        self._rows = rows
        self.snapshots: Snapshots | None = None
        self._timer = SnapshotTimer(None)
        self.unwritten: Callable[[], dict[str, list[str]]] = dict  # lines of rank 0, by the stem of their file
        self.earlier_rows: dict[str, LogEntry] = {}  # of the attempts that this one went on from
        self._owed: int | None = None  # the step of a save under way, if an undisturbed run keeps it
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._together = Together(host_group() if is_connected() else None)  # the thread's own
        self.last_saved: int | None = None
        self._cleaning: threading.Thread | None = None
        self.cleaner = Cleaner(run, world.attempt, keep=keep, on_event=on_event)

    # -- in memory -----------------------------------------------------------------------------------------------
    def keep_in_memory(self, shards: dict[str, Shard], every: int | Literal["auto"]) -> None:
        """Copy the state into the agents' memory as well from now on, where that is to be had; all ranks call this."""
        insists = every != "auto"
        self.snapshots = open_snapshots(self._world, self._identity, shards, self._on_event, insists=insists)
        self._timer = SnapshotTimer(None if every == "auto" else every)

    def votes(self, step: int) -> list[int]:
        """Rank 0's wish for a snapshot, and of every rank: is it not ready for one, does it write a checkpoint?"""
        if self.snapshots is None:
            return [0, 0, 0]
        wants = self._world.is_main and self.snapshots.newest != step and self._timer.due(step)
        return [int(wants), int(self.snapshots.unsettled), int(self.busy)]

    def snapshot(
        self, step: int, shards: dict[str, Shard], train_state: JsonObject, *, saving: bool, unsettled: bool
    ) -> float:
        """Copy the state after `step` steps into memory; returns the seconds for which training was held up.

        saving, unsettled: is any rank writing a checkpoint, or not ready for the next copy?
        """
        assert self.snapshots is not None
        began = time.perf_counter()
        self.snapshots.settle(others=unsettled, patience=COPIED_SECONDS)
        self.snapshots.copy(shards, self._told(step, train_state), save=False, saving=saving)
        seconds = time.perf_counter() - began
        self._timer.taken(seconds)
        return seconds

    def _told(self, step: int, train_state: JsonObject) -> Told:
        rows = {name: entry.model_dump() for name, entry in (self.earlier_rows | self._rows()).items()}
        return Told(step, train_state, self._owed, rows, self.unwritten())

    # -- save ----------------------------------------------------------------------------------------------------
    def allocate_staging(self, shards: dict[str, Shard]) -> None:
        """Begin to allocate the host memory for staging, so that the first save finds it: fresh pages are slow."""

        if self.snapshots is not None:
            self.snapshots.allocate_aside()
            return

        def allocate() -> None:
            step_back()
            for key, shard in shards.items():
                if shard.writes:
                    self._buffer(key, shard).zero_()

        if self._background:
            self._thread = threading.Thread(target=allocate, name="stage-memory", daemon=True)
            self._thread.start()

    def save(self, step: int, shards: dict[str, Shard], train_state: dict[str, Any], kind: CheckpointKind) -> float:
        """Begin a save of the state after `step` steps; returns the seconds for which training was held up."""
        began = time.perf_counter()
        self.wait()
        staged = self._stage_save(step, shards, train_state)
        self._owed = None if kind == "temporary" else step
        save = Save(step, kind, train_state, time.time(), time.perf_counter() - began, sorted(shards), self._rows())
        if self._background:
            self._thread = threading.Thread(
                target=self._write_aside, args=(save, staged), name="checkpoint", daemon=True
            )
            self._thread.start()
        else:
            self._write(save, staged)
        return time.perf_counter() - began

    def _stage_save(self, step: int, shards: dict[str, Shard], train_state: JsonObject) -> dict[str, Shard]:
        """Copies of what this rank writes: in a slot, which is a snapshot then, or in buffers of its own."""
        if self.snapshots is not None:
            self.snapshots.settle(others=True)
            copies = self.snapshots.copy(shards, self._told(step, train_state), save=True, saving=False)
            if copies is not None:
                return {key: copy for key, copy in copies.items() if copy.writes}
        return self._stage(shards)

    @property
    def busy(self) -> bool:
        """True while a save is under way. One that is not urgent can be deferred until the store has taken this one."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, *, must_succeed: bool = False) -> None:
        """Until no save is in flight. A failed save was reported when it failed.

        `must_succeed` raises its error too, and waits for the cleaning after it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if must_succeed:
            self._await_cleaning()
        error = self._error
        self._error = None
        if error is not None and (must_succeed or isinstance(error, FencedError)):
            raise error

    @torch.no_grad()
    def _stage(self, shards: dict[str, Shard]) -> dict[str, Shard]:
        """Copies in host memory, in buffers that are used again at the next save."""
        staged = {}
        on_gpu = False
        for key, shard in shards.items():
            if not shard.writes:
                continue
            buffer = self._buffer(key, shard)
            buffer.copy_(shard.tensor, non_blocking=True)
            on_gpu = on_gpu or shard.tensor.device.type == "cuda"
            staged[key] = replace(shard, tensor=buffer)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return staged

    def _buffer(self, key: str, shard: Shard) -> Tensor:
        if key not in self._buffers:
            pinned = shard.tensor.device.type == "cuda"
            self._buffers[key] = torch.empty(shard.tensor.shape, dtype=shard.tensor.dtype, pin_memory=pinned)
        return self._buffers[key]

    def _write_aside(self, save: Save, staged: dict[str, Shard]) -> None:
        step_back()
        self._write(save, staged)

    def _write(self, save: Save, staged: dict[str, Shard]) -> None:
        self._await_cleaning()  # it would take the uploads of this save, of any rank, for leftovers
        try:
            facts = self._upload(save, staged)
            self._owed = None
        except BaseException as error:
            self._owed = None
            self._error = error
            self.cleaner.must_sweep = True
            if isinstance(self._error, FencedError):
                self._forget(save.step)
            self._on_event(events.SAVE_FAILED, step=save.step, kind=save.kind, message=str(self._error))
            return
        self.last_saved = save.step
        self._on_event(events.SAVED, step=save.step, kind=save.kind, **facts)
        if self._world.is_main:
            self.clean_aside(partial(self.cleaner.after_save, save.step))

    def _upload(self, save: Save, staged: dict[str, Shard]) -> dict[str, float]:
        """Write all shards and commit. Seconds from its beginning, of its stages, and on rank 0 the bytes."""
        folder = self.run.checkpoint_dir(save.step)
        facts: dict[str, float] = {}

        def write() -> FileEntry | None:
            began = time.perf_counter()
            entry = parts.write_parts(self.run.path(folder), self._file_name(self._world.rank), staged)
            facts["upload_seconds"] = time.perf_counter() - began
            return entry

        def commit(written: dict[int, FileEntry], joined: Joined) -> None:
            began = time.perf_counter()
            manifest = self._manifest(save, written, joined)
            self._commit(folder, manifest)
            facts["bytes"] = manifest.total_bytes
            facts["commit_seconds"] = round(time.perf_counter() - began, 3)

        self._together.save(save.held, parts.written_parts(staged), write, commit)
        seconds = {"seconds": time.time() - save.began, "stall_seconds": save.stall_seconds}
        seconds["upload_seconds"] = facts.pop("upload_seconds")
        return {key: round(value, 4) for key, value in seconds.items()} | facts

    def _file_name(self, rank: int) -> str:
        """Of a rank's shards, in every checkpoint of this attempt."""
        return layout.shard_file(self._world.attempt, rank)

    def _forget(self, step: int) -> None:
        """Remove a file that no manifest will name: the new owner of the run may have swept before it was written."""
        with contextlib.suppress(OSError), retry.retry_budget(0):
            self.run.remove(f"{self.run.checkpoint_dir(step)}/{self._file_name(self._world.rank)}")

    def _manifest(self, save: Save, written: dict[int, FileEntry], joined: Joined) -> Manifest:
        return Manifest(
            step=save.step,
            attempt=self._world.attempt,
            run_id=self._identity.run_id,
            world_size=self._world.world_size,
            kind=save.kind,
            created=save.began,
            train_state=save.train_state,
            model=self._identity.model,
            data_digest=self._identity.data_digest,
            recipe_hash=self._identity.recipe_hash,
            versions=self._identity.versions,
            frozen=self._identity.frozen,
            base=self._identity.base,
            rows=self.earlier_rows | save.rows,
            piece_bytes=parts.PIECE_BYTES,
            files={self._file_name(rank): entry for rank, entry in written.items()},
            tensors={
                key: TensorEntry(dtype=dtype, shape=shape, layout=number)
                for key, (dtype, shape, number) in joined.tensors.items()
            },
            layouts=joined.layouts,
        )

    def _commit(self, folder: str, manifest: Manifest) -> None:
        """The manifest makes the checkpoint. It is created; only that of an earlier attempt is replaced.

        Raises FencedError in an attempt that is late.
        """
        self._before_commit()
        check_owner(self.run, self._world.attempt)
        name = f"{folder}/{MANIFEST}"
        try:
            self.run.create_text(name, sealed(manifest))
        except FileExistsError:
            # Of an attempt before this one, which passed it over: it is damaged, or came after this one had begun.
            other = self._attempt_of(manifest.step)
            if other is not None and other > self._world.attempt:
                raise FencedError(fenced(other, self._world.attempt)) from None
            self.run.write_text(name, sealed(manifest))
        self.cleaner.committed(manifest.step, manifest.kind)
        self.run.write_json(LATEST, {"step": manifest.step})

    def _attempt_of(self, step: int) -> int | None:
        """The attempt that committed a step; None if it is unknown."""
        try:
            return read_manifest(self.run.path(self.run.checkpoint_dir(step))).attempt
        except (FileNotFoundError, CorruptError):
            return None

    # -- clean ---------------------------------------------------------------------------------------------------
    def clean_aside(self, clean: Callable[[], object]) -> None:
        """Runs cleaning in a thread, with one try for each request; the next save begins to write when it is over."""
        self._await_cleaning()
        self._cleaning = threading.Thread(target=self._clean, args=(clean,), name="cleaning", daemon=True)
        self._cleaning.start()

    def _clean(self, clean: Callable[[], object]) -> None:
        step_back()
        try:
            with retry.retry_budget(0):
                clean()
        except FencedError as error:
            self._error = error

    def _await_cleaning(self) -> None:
        if self._cleaning is not None:
            self._cleaning.join()
            self._cleaning = None

    # -- load ----------------------------------------------------------------------------------------------------
    def drop_after(self, step: int) -> None:
        """Remove the checkpoints after a step, so that the next save is free to write them anew."""
        self.wait()
        self._await_cleaning()
        self.last_saved = None
        if self.snapshots is not None:
            self.snapshots.forget_after(step)
        if self._world.is_main:
            self.cleaner.drop_after(step)

    def restore(self, shards: dict[str, Shard]) -> Restored | None:
        """Fill `shards` from the agents' memory, or from the newest intact checkpoint; None if there is neither."""
        found = self._from_memory(shards)
        if found is None and (manifest := self.load_newest(shards)) is not None:
            found = Restored(manifest.step, manifest.train_state, FROM_DISK)
        if self.snapshots is not None:
            self.snapshots.forget_after(0 if found is None else found.step)
        return found

    def _from_memory(self, shards: dict[str, Shard]) -> Restored | None:
        if self.snapshots is None:
            return None
        header = load_newest_snapshot(self.run, self._world, self.snapshots, shards, self._on_event)
        if header is None:
            return None
        self.earlier_rows = {name: LogEntry.model_validate(entry) for name, entry in header.rows.items()}
        saved = from_rank_zero(RunCheckpoints(self.run).newest() if self._world.is_main else None)
        self.last_saved = header.step if saved == header.step else None
        return Restored(header.step, header.train_state, FROM_MEMORY)

    def load_newest(self, shards: dict[str, Shard], *, at_most: int | None = None) -> Manifest | None:
        """Fill `shards` from the newest intact checkpoint, of step `at_most` or before; None if there is none at all.

        All ranks take the same one. Damaged ones are reported and passed over; NoValidCheckpointError if all are.
        """
        faults: list[str] = []
        candidates = self._candidates(at_most) if self._world.is_main else iter(())
        while (step := from_rank_zero(next(candidates, None))) is not None:
            folder = self.run.path(self.run.checkpoint_dir(step))
            try:
                manifest = self._read_manifest(folder)
                self._check_identity(folder, manifest)
                self._load(folder, manifest, shards)
            except CorruptError as error:
                faults.append(str(error))
                self.cleaner.passed_over(step)
                self._on_event(events.FELL_BACK, step=step, message=str(error))
                continue
            self.last_saved = step
            self.earlier_rows = manifest.rows
            return manifest
        begins = at_most is None and self._world.is_main
        gone = from_rank_zero(RunCheckpoints(self.run).missing() if begins else None)
        if gone is not None and not faults:
            raise NoValidCheckpointError(
                f"step {gone} of this run was saved, and no checkpoint is there any more. Starting over would lose the "
                "run, so nothing was done: restore the files, or start over on purpose: launch resume --from-scratch"
            )
        if faults:
            listed = "; ".join(faults)
            raise NoValidCheckpointError(
                f"none of the {len(faults)} checkpoints is intact ({listed}). Starting over would lose the run, so "
                "nothing was done: restore a checkpoint's files, or start a new run"
            )
        return None

    def _candidates(self, at_most: int | None) -> Iterator[int]:
        """Steps of the checkpoints that count, newest first; reports those that do not. Rank 0 only."""
        checkpoints = RunCheckpoints(self.run)
        if at_most is not None:
            yield from (step for step in checkpoints.counting() if step <= at_most)
            return
        checkpoints.look_ahead()
        if (gone := checkpoints.missing()) is not None and not self.run.exists(layout.manifest(gone)):
            self._on_event(events.FELL_BACK, step=gone, message=f"{self.run.checkpoint_dir(gone)} is gone")
        for step in checkpoints.steps():
            if why := checkpoints.late(step):
                self.cleaner.passed_over(step)
                self._on_event(events.PASSED_OVER, step=step, message=why)
            else:
                yield step

    def _read_manifest(self, folder: str) -> Manifest:
        result: Any = None
        if self._world.is_main:
            try:
                result = read_manifest(folder)
            except StoreError as error:  # it may be whole: no reason to fall back
                result = error
            except (CorruptError, OSError) as error:
                result = CorruptError(str(error))
        result = from_rank_zero(result)
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Manifest)
        return result

    def _check_identity(self, folder: str, manifest: Manifest) -> None:
        if not same_knobs(manifest.model, self._identity.model):
            raise ValueError(f"{folder} was saved from another model than this run's")
        if manifest.data_digest != self._identity.data_digest:
            raise ValueError(f"{folder} was trained on other data (digest {manifest.data_digest}) than this run's")
        if manifest.frozen != self._identity.frozen:
            differing = sorted(set(manifest.frozen) ^ set(self._identity.frozen))
            raise ValueError(
                f"{folder} was saved with other frozen parameters than this run's; {', '.join(differing[:4])} "
                "among those that differ. Freeze the same ones, or start a new run from it with model.init_from"
            )
        digest = self._identity.base.get("digest")
        if manifest.base.get("digest", digest) != digest:
            source = self._identity.base.get("init_from")
            raise ValueError(
                f"{folder} was trained over the weights of {source}, and other weights lie there now; bring the first "
                "ones back, or start a new run"
            )
        if {**manifest.base, "digest": digest} != {**self._identity.base, "digest": digest}:
            raise ValueError(f"{folder}: its frozen parameters come from {manifest.base}, not {self._identity.base}")

    def _load(self, folder: str, manifest: Manifest, shards: dict[str, Shard]) -> None:
        self._together.load(lambda: parts.read_parts(folder, manifest, shards))
