"""Cleaning of a run's checkpoints: removes superfluous ones, and leftovers of saves that were cut short.

If it fails, that costs room and nothing else. So a store that fails is asked once, and again after the next save; one
that denies it, not again in this attempt. Each kind of cleaning is tried for itself, and its failure reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from launchyard.run import events, layout
from launchyard.run.checkpoints import RunCheckpoints
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.storage.errors import CorruptError, DamagedError, DeniedError
from launchyard.storage.shards import MANIFEST, read_head, read_manifest
from launchyard.training.checkpoint.commit import check_owner
from launchyard.training.checkpoint.retention import remove_checkpoint, remove_empty, superfluous
from launchyard.training.telemetry.events import OnEvent

OLD = "old checkpoints"
UPLOADS = "uploads that were cut short"
BEYOND = "checkpoints of steps that were taken back"
FILES = "files of saves that were cut short"


class Cleaner:
    """Cleans up after the saves of one run; on rank 0 only, while no save is in flight.

    `keep`: permanent checkpoints that stay; None: all. `best()`: steps that stay as well. Its methods raise FencedError
    once another attempt owns the run, and no error of a store.
    """

    def __init__(self, run: RunDir, attempt: int, *, keep: int | None, on_event: OnEvent) -> None:
        self._run = run
        self._attempt = attempt
        self._keep = keep
        self.best: Callable[[], Collection[int]] = tuple
        self.reach = 0  # steps by which training may have to go back
        self._on_event = on_event
        self._kinds: dict[int, str] = {}
        self._passed_over: set[int] = set()  # committed, and nothing to fall back on
        self._reported: set[str] = set()
        self._denied: set[str] = set()
        self.must_sweep = True  # after the first save: a killed attempt may still have been writing at our start

    # -- facts that the checkpointer knows ---------------------------------------------------------------------------
    def committed(self, step: int, kind: str) -> None:
        self._kinds[step] = kind
        self._passed_over.discard(step)  # the one that was there before

    def passed_over(self, step: int) -> None:
        self._passed_over.add(step)

    # -- cleaning ----------------------------------------------------------------------------------------------------
    def after_save(self, newest: int) -> None:
        """Removes checkpoints that the newest committed one makes superfluous, and sweeps if that is due.

        An attempt that was superseded by then removes nothing: its commit may be late, and not count.
        """
        removed = self._attempted(OLD, lambda: self._remove_old(newest))
        if self.must_sweep or not removed:  # one without its manifest, but with files, is a leftover
            self.must_sweep = not self.sweep()

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints after a step: training goes on from it another way."""
        self._attempted(BEYOND, lambda: self._remove_after(step))

    def _remove_after(self, step: int) -> None:
        for later in [found for found in RunCheckpoints(self._run).steps() if found > step]:
            remove_checkpoint(self._run, later)
            self._kinds.pop(later, None)

    def sweep(self) -> bool:
        """Removes leftovers of killed saves: unfinished uploads, files that no manifest names.

        Never files of a newer attempt, should this one have been superseded: each name begins with its attempt. Returns
        False if it is worth another try.
        """
        uploads = self._attempted(UPLOADS, lambda: files.sweep_uploads(self._run.path(layout.CHECKPOINTS)))
        return self._attempted(FILES, self._sweep_folders) and uploads

    def _attempted(self, kind: str, clean: Callable[[], object]) -> bool:
        """Cleans, unless that is denied. Returns False if it is worth another try."""
        if kind in self._denied:
            return True
        try:
            check_owner(self._run, self._attempt)
            clean()
        except (OSError, DamagedError) as error:
            if isinstance(error, DeniedError):
                self._denied.add(kind)
            if kind not in self._reported:
                self._reported.add(kind)
                self._on_event(events.CLEANUP_FAILED, what=kind, message=str(error))
            return kind in self._denied
        return True

    def _remove_old(self, newest: int) -> None:
        kinds = {step: self._kind(step) for step in self._counted()}
        found = superfluous(kinds, newest=newest, keep=self._keep, best=self.best(), reach=self.reach)
        for step in found:
            remove_checkpoint(self._run, step)
            self._kinds.pop(step, None)

    def _counted(self) -> Iterator[int]:
        """Steps that retention counts: neither those passed over nor late ones older than the loaded one."""
        checkpoints = RunCheckpoints(self._run)
        for step in checkpoints.steps():
            if step not in self._passed_over and step not in self._kinds and checkpoints.late(step):
                self._passed_over.add(step)
            if step not in self._passed_over:
                yield step

    def _kind(self, step: int) -> str:
        if step not in self._kinds:
            head = read_head(self._run.path(self._run.checkpoint_dir(step)))
            if head is None:  # the doctor's business, not ours to remove
                return "unreadable"
            self._kinds[step] = head.kind
        return self._kinds[step]

    def _sweep_folders(self) -> None:
        for name in self._run.listdir(layout.CHECKPOINTS):
            if layout.checkpoint_step(name) is not None:
                self._sweep_folder(f"{layout.CHECKPOINTS}/{name}")

    def _sweep_folder(self, folder: str) -> None:
        mine = layout.attempt_prefix(self._attempt)
        entries = {name for name in self._run.listdir(folder) if name[: len(mine)] <= mine or name.endswith(".tmp")}
        if entries and not entries <= self._likely(folder):
            named = self._named(folder)
            if named is None:
                return
            for entry in entries - named:
                self._run.remove(f"{folder}/{entry}")
        remove_empty(self._run, folder)

    def _likely(self, folder: str) -> set[str]:
        """Files of the ranks that have committed a checkpoint, by the beginning of its manifest: no seal is checked, so
        nothing is removed for it."""
        try:
            head = read_head(self._run.path(folder))
        except FileNotFoundError:
            return set()
        ranks = range(0 if head is None else head.world_size)
        return {MANIFEST, *(layout.shard_file(head.attempt, rank) for rank in ranks if head is not None)}

    def _named(self, folder: str) -> set[str] | None:
        """Files that a checkpoint names; None if its manifest is damaged. Read by name: a listing may lag."""
        try:
            return {*read_manifest(self._run.path(folder)).files, MANIFEST}
        except FileNotFoundError:
            return set()
        except CorruptError:
            return None
