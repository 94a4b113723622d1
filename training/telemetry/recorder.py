"""Distributes a step's numbers: its row, the series, the account of the run's time, trackers, events for spikes and
stragglers. Knows no model and decides nothing.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from launchyard.run import events
from launchyard.run.append import Appender
from launchyard.run.goodput import AttemptFacts, Goodput, Ledger, cause_between, read_facts, wait_between
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.distributed import World
from launchyard.training.telemetry.exporter import Exporter
from launchyard.training.telemetry.instruments import Instruments
from launchyard.training.telemetry.peak_flops import Flops
from launchyard.training.telemetry.spikes import SpikeFinder
from launchyard.training.telemetry.stragglers import EVERY_STEPS, Stragglers
from launchyard.training.telemetry.trackers.open import Trackers


class Account:
    """Rank 0's account of the whole run. A thread reads the records of earlier attempts, once."""

    def __init__(self, run: RunDir, attempt: int, on_read: Callable[[list[AttemptFacts]], None]) -> None:
        self._run = run
        self._attempt = attempt
        self._on_read = on_read
        self._lock = threading.Lock()
        self._ledger: Ledger | None = None
        self._waiting: list[tuple[dict[str, Any], int]] = []
        self.recomputed_tokens = 0
        threading.Thread(target=self._read, name="account", daemon=True).start()

    def _read(self) -> None:
        try:
            ledger, before = self._earlier()
        except (OSError, ValueError) as error:  # an unreachable store: no account is better than a wrong one
            print(f"the time of earlier attempts cannot be read: {error}")
            return
        with self._lock:
            self._ledger = ledger
            waiting = self._waiting
            self._waiting = []
            for row, tokens in waiting:
                self._enter(row, tokens)
        self._on_read(before)

    def _earlier(self) -> tuple[Ledger, list[AttemptFacts]]:
        claimed = self._attempt in self._run.attempts()  # else started by hand
        created = self._run.job(self._attempt).created if claimed else time.time()
        submitted = [submission.submitted for submission in self._run.submissions()]
        ledger = Ledger(created)
        before = list(read_facts(self._run, before=self._attempt))
        if before or submitted:
            ledger = Ledger(min([created, *submitted, *(facts.created for facts in before[:1])]))
        last: AttemptFacts | None = None
        for facts in [*before, AttemptFacts(self._attempt, created)]:
            if last is not None:
                wait_between(ledger, last, facts.created, submitted)
            ledger.begin(facts.attempt, facts.created, waited="queue" if last is None else cause_between(last))
            if facts.attempt != self._attempt:
                for row in facts.rows:
                    ledger.row(row)
                ledger.end(facts.outcome, facts.finished)
            last = facts
        return ledger, before

    def row(self, row: dict[str, Any], tokens: int) -> None:
        with self._lock:
            if self._ledger is None:
                self._waiting.append((row, tokens))
            else:
                self._enter(row, tokens)

    def _enter(self, row: dict[str, Any], tokens: int) -> None:
        assert self._ledger is not None
        if self._ledger.row(row):
            self.recomputed_tokens += tokens

    def goodput(self) -> Goodput | None:
        """Until now; None while the past is still being read."""
        with self._lock:
            return None if self._ledger is None else self._ledger.preview(time.time())


class Shown(Protocol):
    """Keeps counts of its own, and sets them at each scrape."""

    def show(self, exporter: Exporter) -> None: ...


class Recorder:
    """Takes every step's numbers, on every rank. `rows`, `account` and `trackers` are rank 0's."""

    def __init__(
        self,
        world: World,
        instruments: Instruments,
        *,
        device: torch.device,
        flops: Flops,
        rows: Appender | None = None,
        account: Account | None = None,
        trackers: Trackers | None = None,
        cache: Shown | None = None,
    ) -> None:
        self._world = world
        self._clock = instruments.clock
        self._exporter = instruments.exporter
        self._on_event = instruments.events
        self._device = device
        self._flops = flops
        self._peak = flops.peak
        self._rows = rows
        self._account = account
        self._trackers = trackers
        self._cache = cache
        self._spikes = SpikeFinder()
        self._stragglers = Stragglers()
        self._computed = 0.0  # at the last update of the ranks
        self._on_device: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._exporter.set("trainer_rank_info", 1, local_rank=str(world.local_rank), UUID=gpu_uuid(device))
        if flops.peak is not None:
            self._exporter.set("trainer_peak_flops", flops.peak)
        self._exporter.before_scrapes(self._show)

    def step(self, row: dict[str, Any], tokens: int) -> None:
        """`row` as it is written, except for the keys that are added here; `tokens` of the step, over all ranks."""
        flops = self._flops.of(tokens, row["labels"])
        mfu = None if self._peak is None else flops / row["step_seconds"] / self._peak
        if mfu is not None:
            row["mfu"] = round(mfu, 4)
        row |= {"phases": self._clock.lap(), "attempt": self._world.attempt, "time": round(time.time(), 3)}
        if self._clock.observer is not None:
            self._clock.observer.stepped(row["step"], row["step_seconds"])
        self._exporter.row(row, tokens=tokens, flops=flops, mfu=mfu)
        if not self._world.is_main:
            return
        if self._rows is not None:
            self._rows.add(row)
        if self._account is not None:
            self._account.row(row, tokens)
        if self._trackers is not None:
            self._trackers.step(row)
        if (spike := self._spikes.update(row["loss"])) is not None:
            self._exporter.add("trainer_loss_spikes_total")
            if spike.in_a_row == 1:
                self._on_event(events.LOSS_SPIKE, step=row["step"], loss=spike.loss, usual=round(spike.usual, 4))

    def validated(self, row: dict[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.validated(row)

    def tasks_done(self, row: JsonObject) -> None:
        if self._trackers is not None:
            self._trackers.tasks_done(row)

    def close(self) -> None:
        """No more steps come."""
        if self._trackers is not None:
            self._trackers.close()

    def wait(self, seconds: float) -> None:
        """Let trackers take the remaining rows, for so long."""
        if self._trackers is not None:
            self._trackers.wait(seconds)

    # -- ranks -------------------------------------------------------------------------------------------------------
    def compute_votes(self, step: int) -> list[int]:
        """Now and then, this rank's own compute time since the last update, among zeros for the others: microseconds.

        To be summed over ranks in the same all-reduce as the batch.
        """
        if self._world.world_size == 1 or step % EVERY_STEPS:
            return []
        votes = [0] * self._world.world_size
        seconds = self._clock.seconds
        computed = seconds["forward_backward"] + seconds["optimizer"]
        if self._device.type == "cuda":  # the host only enqueues
            votes[self._world.rank] = self._device_microseconds()
        else:
            votes[self._world.rank] = int((computed - self._computed) * 1e6)
        self._computed = computed
        return votes

    def time_on_device(self, step: int) -> tuple[torch.cuda.Event, torch.cuda.Event] | None:
        """Events around the device's work without other ranks; None if it is not timed in this step.

        Recorded some steps before they are read: the host runs ahead of the device.
        """
        if self._device.type != "cuda" or self._world.world_size == 1 or (step + 5) % EVERY_STEPS:
            return None
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._on_device = [pair]
        return pair

    def _device_microseconds(self) -> int:
        done = [start.elapsed_time(end) * 1e3 for start, end in self._on_device if end.query()]
        return int(sum(done)) * EVERY_STEPS  # one step was timed

    def ranks_computed(self, step: int, microseconds: Sequence[int]) -> None:
        """All ranks' times, if it was time for them."""
        if not microseconds or not all(microseconds):  # the first update of an attempt, or not read yet
            return
        seconds = [value / 1e6 / EVERY_STEPS for value in microseconds]
        found = self._stragglers.update(seconds)
        self._exporter.set("trainer_rank_compute_ratio", self._stragglers.ratios[self._world.rank])
        for one in found if self._world.is_main else ():
            self._on_event(
                events.STRAGGLER if one.slow else events.STRAGGLER_OVER,
                step=step,
                rank=one.rank,
                ratio=round(one.ratio, 2),
                seconds=round(one.seconds, 4),
                median_seconds=round(one.median_seconds, 4),
            )

    # -- values that are only read at a scrape -----------------------------------------------------------------------
    def _show(self, exporter: Exporter) -> None:
        for phase, seconds in self._clock.so_far().items():
            exporter.count("trainer_phase_seconds_total", seconds, phase=phase)
        for name, amount in memory_of(self._device).items():
            exporter.set(f"trainer_memory_{name}_bytes", amount)
        if self._cache is not None:
            self._cache.show(exporter)
        if self._account is None or (goodput := self._account.goodput()) is None:
            return
        exporter.count("trainer_recomputed_tokens_total", self._account.recomputed_tokens)
        if goodput.ratio is not None:
            exporter.set("trainer_goodput_ratio", goodput.ratio)
        for cause, seconds in goodput.seconds.items():
            exporter.set("trainer_run_seconds", seconds, cause=cause)


def gpu_uuid(device: torch.device) -> str:
    """As nvidia-smi and DCGM have it; empty on a CPU, and where torch does not tell it."""
    if device.type != "cuda":
        return ""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{str(uuid).removeprefix('GPU-')}" if uuid else ""


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes allocated, reserved, peak, capacity: of the GPU; on a CPU of this process, and of the machine."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
            "capacity": torch.cuda.get_device_properties(device).total_memory,
        }
    if device.type == "mps":  # its memory is the host's; torch keeps no peak
        allocated = torch.mps.current_allocated_memory()
        return {
            "allocated": allocated,
            "reserved": torch.mps.driver_allocated_memory(),
            "peak": allocated,
            "capacity": torch.mps.recommended_max_memory(),
        }
    import psutil

    resident = psutil.Process().memory_info().rss
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {"allocated": resident, "reserved": resident, "peak": peak, "capacity": psutil.virtual_memory().total}
