"""The two slots of this rank: the state is copied into one of them while the other stays whole.

So at any instant all ranks have a whole slot of the same step, from the second copy on. Where neighbours copy slots, it
is one that all of them have: a newer one is overwritten before it. All ranks copy at the same steps; what they agree on
before is the loop's business. Knows no run directory, and no schedule.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import xxhash
from torch import Tensor

from launchyard.host.priority import step_back
from launchyard.storage.damage import JsonObject
from launchyard.storage.safetensors import dtype_code, torch_dtype
from launchyard.training.checkpoint.slots import Slot, SlotEntry, SlotHeader, aligned, slot_bytes
from launchyard.training.checkpoint.state import Shard
from launchyard.training.distributed import sum_over_ranks

COPIED_SECONDS = 30.0  # for neighbours to copy a slot, where snapshots are due at steps: then training goes on
_LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Told:
    """What a slot says beside its tensors; see SlotHeader."""

    step: int
    train_state: JsonObject
    owed: int | None = None
    rows: dict[str, JsonObject] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)


class Snapshots:
    """`identity`: facts that a state must share with us to be taken for ours. `say(message)`: of what goes wrong."""

    def __init__(
        self,
        slots: Sequence[Slot],
        identity: JsonObject,
        attempt: int,
        shards: dict[str, Shard],
        say: Callable[[str], None],
    ) -> None:
        self._slots = slots
        self._identity = json.loads(json.dumps(identity))  # as it comes back
        self._attempt = attempt
        self._say = say
        self._entries = entries_of(shards)
        self._on_gpu = any(shard.tensor.device.type == "cuda" for shard in shards.values())
        self._views: list[dict[str, Tensor]] = [{} for _ in slots]
        self._headers = [slot.header() for slot in slots]
        self._steps = [None if header is None else header.step for header in self._headers]
        self._saving: int | None = None  # the slot that a checkpoint is written from
        self._kept: int | None = None  # the newest step that is safe on all ranks, as they have agreed
        self._turn = 0
        self._thread: threading.Thread | None = None
        self._failed = False

    @property
    def bytes(self) -> int:
        """Of one slot."""
        return slot_bytes(self._entries)

    # -- write ---------------------------------------------------------------------------------------------------
    def allocate_aside(self) -> None:
        """Fresh pages are slow, so they are made before they are needed. A machine without them has no snapshots."""
        if not all(self._views):
            self._thread = threading.Thread(target=self._allocate, name="slots", daemon=True)
            self._thread.start()

    def _allocate(self) -> None:
        step_back()
        try:
            for number, step in enumerate(self._steps):
                self._map(number)
                for view in self._views[number].values() if step is None else ():
                    view.zero_()  # touched now, and not while a step waits
        except (OSError, ValueError) as error:
            self._failed = True
            self._say(f"no memory for two slots of {self.bytes} bytes: {error}")

    def _map(self, number: int) -> None:
        if not self._views[number]:
            self._slots[number].reserve(self.bytes)
            memory = self._slots[number].memory(self.bytes)
            if self._on_gpu:
                self._register(memory)
            self._views[number] = views_of(memory, self._entries)

    def _register(self, memory: mmap.mmap) -> None:
        """Without it a copy from a GPU works too, and holds up the step for longer."""
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        error = torch.cuda.cudart().cudaHostRegister(at, len(memory), 0)
        if int(error) != 0:
            self._say(
                f"the memory of snapshots could not be registered with CUDA (error {int(error)}): copies are slow"
            )

    @property
    def unsettled(self) -> bool:
        """True while this rank's slots are not ready for the next copy: they are made or sealed, a neighbour has yet
        to copy the newest, or there are none."""
        return self._failed or (self._thread is not None and self._thread.is_alive()) or self._awaits_copy

    @property
    def _awaits_copy(self) -> bool:
        newest = self.newest
        return newest is not None and self._slots[self._steps.index(newest)].awaits_copy

    def settle(self, *, others: bool, patience: float = 0.0) -> None:
        """Wait until our last copy is sealed; others: until that of each rank is, for all of them call this.

        Without `others` all have said that they are settled. patience: seconds for neighbours to copy it, too.
        """
        self._join()
        waits = 0
        if others:
            until = time.monotonic() + patience
            while self._awaits_copy and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)
            waits = int(sum_over_ranks(torch.tensor([int(self._awaits_copy)])).item())
        if not waits:
            self._kept = self.newest

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def copied(self) -> int | None:
        """The newest step that the neighbours of all ranks have, as far as it is known; None without neighbours."""
        return self._kept if self._slots[0].wants_copies else None

    @property
    def newest(self) -> int | None:
        """The step of the newest copy."""
        return max((step for step in self._steps if step is not None), default=None)

    @torch.no_grad()
    def copy(self, shards: Mapping[str, Shard], told: Told, *, save: bool, saving: bool) -> dict[str, Shard] | None:
        """Copy all that this rank holds, and seal it aside; the copies, or None where there is no memory for them.

        save: a checkpoint is written from it, and it stays until `saving` is false: until no rank writes any more.
        """
        self._join()
        if self._failed:
            return None
        number = self._free_slot(saving)
        self._slots[number].break_seal()
        self._map(number)
        views = self._views[number]
        for key, shard in shards.items():
            fill(views[key], shard.tensor)
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        self._steps[number] = told.step
        if save:
            self._saving = number
        self._thread = threading.Thread(target=self._seal, args=(number, told), name="seal", daemon=True)
        self._thread.start()
        return {key: replace(shard, tensor=views[key]) for key, shard in shards.items()}

    def _free_slot(self, saving: bool) -> int:
        if saving and self._saving is not None:
            self._kept = self._steps[self._saving]
            return 1 - self._saving
        stays = self._kept if self._kept is not None and self._kept in self._steps else self.newest
        return 0 if stays is None else 1 - self._steps.index(stays)

    def _seal(self, number: int, told: Told) -> None:
        step_back()
        views = self._views[number]
        entries = {key: entry.model_copy(update={"xxh3": xxh3_of(views[key])}) for key, entry in self._entries.items()}
        header = SlotHeader(
            step=told.step,
            attempt=self._attempt,
            time=time.time(),
            identity=self._identity,
            train_state=told.train_state,
            entries=entries,
            turn=self._turn,
            owed=told.owed,
            rows=told.rows,
            lines=told.lines,
        )
        try:
            self._slots[number].seal(header)
        except OSError as error:
            self._say(f"the snapshot of step {told.step} could not be sealed: {error}")

    def forget_after(self, step: int) -> None:
        """No step leads to those after it any more."""
        self._join()
        self._turn += 1
        self._kept = None if self._kept is not None and self._kept > step else self._kept
        for number, at in enumerate(self._steps):
            if at is not None and at > step:
                self._slots[number].break_seal()
                self._steps[number] = None

    # -- read ----------------------------------------------------------------------------------------------------
    def offers(self) -> list[SlotHeader]:
        """Of the slots that an attempt before this one has sealed, of our state cut as ours is; no hash is checked."""
        return [header for header in self._headers if header is not None and self._is_ours(header)]

    def other_worlds(self) -> list[int]:
        """The numbers of workers of the other attempts of this run that have left a state here."""
        mine = (self._identity.get("run_id"), self._identity.get("world_size"))
        found = [header.identity for header in self._headers if header is not None]
        theirs = {(one.get("run_id"), one.get("world_size")) for one in found}
        return sorted(int(world) for run, world in theirs - {mine} if run == mine[0] and isinstance(world, int))

    def _is_ours(self, header: SlotHeader) -> bool:
        if header.attempt >= self._attempt or header.identity != self._identity:
            return False
        if header.entries.keys() != self._entries.keys():
            return False
        return all(entry.same_cut(self._entries[key]) for key, entry in header.entries.items())

    def fault(self, step: int) -> str:
        """Of the slot of a step that was offered: the first tensor that is not what was sealed; empty if all are."""
        number, header = self._offered(step)
        try:
            self._map(number)
        except (OSError, ValueError) as error:
            return f"it cannot be mapped: {error}"
        views = self._views[number]
        damaged = (key for key, entry in header.entries.items() if xxh3_of(views[key]) != entry.xxh3)
        found = next(damaged, None)
        return "" if found is None else f"{found} is changed"

    @torch.no_grad()
    def load(self, step: int, shards: Mapping[str, Shard]) -> SlotHeader:
        """Fill `shards` from the slot of a step without a fault."""
        number, header = self._offered(step)
        for key, shard in shards.items():
            shard.tensor.copy_(self._views[number][key])
        return header

    def _offered(self, step: int) -> tuple[int, SlotHeader]:
        return next(
            (number, header)
            for number, header in enumerate(self._headers)
            if header is not None and header.step == step and self._is_ours(header)
        )


def fill(copy: Tensor, tensor: Tensor) -> None:
    copy.copy_(tensor, non_blocking=True)


def open_slots(paths: Sequence[str]) -> list[Slot]:
    """OSError if one of them cannot be opened."""
    opened: list[Slot] = []
    with contextlib.ExitStack() as stack:
        for path in paths:
            opened.append(Slot(path))
            stack.callback(opened[-1].close)
        stack.pop_all()
    return opened


def entries_of(shards: Mapping[str, Shard]) -> dict[str, SlotEntry]:
    """The places of this rank's parts in a slot."""
    found = {}
    at = 0
    for key, shard in shards.items():
        length = shard.tensor.numel() * shard.tensor.element_size()
        found[key] = SlotEntry(
            dtype=dtype_code(shard.tensor.dtype),
            shape=shard.shape,
            offsets=shard.offsets,
            sizes=tuple(shard.tensor.shape),
            start=at,
            length=length,
        )
        at = aligned(at + length)
    return found


def views_of(memory: mmap.mmap, entries: Mapping[str, SlotEntry]) -> dict[str, Tensor]:
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return {
        key: whole[entry.start : entry.start + entry.length].view(torch_dtype(entry.dtype)).view(entry.sizes)
        for key, entry in entries.items()
    }


def xxh3_of(tensor: Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(tensor.reshape(-1).view(torch.uint8).numpy())
