"""A checkpoint at work while its run trains: rank 0 loads it and asks it something in a thread, the others wait.

The model is loaded from the run's own files, so answers are those of anybody who loads that checkpoint, and the
training's weights and random state stay untouched. Knows no tasks and no samples.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from launchyard.storage.damage import JsonObject
from launchyard.training.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel

POLL_SECONDS = 0.25  # between two agreements of the ranks that wait
NOT_SAVED = "the checkpoint that was to be asked could not be saved"
Work = Callable[["LoadedModel", Callable[[], None]], JsonObject]


class CutError(Exception):
    """Nobody waits for the answer any more."""


class Point(Protocol):
    """Something that is asked at some steps. All of it is the same on every rank; only rank 0 asks and reports."""

    def due(self, step: int, *, is_last: bool) -> bool: ...

    def asked(self, step: int) -> None:
        """Not again at this step."""
        ...

    def forget_after(self, step: int) -> None:
        """What was asked after that step: training goes another way from there."""
        ...

    def begin(self, telemetry: Telemetry, step: int) -> None: ...

    def work(self, loaded: LoadedModel, check: Callable[[], None]) -> JsonObject:
        """The answer, as a row without its step. Calls `check` now and then, which ends it if nobody waits."""
        ...

    def report(self, telemetry: Telemetry, step: int, asking: Asking | None, *, is_last: bool) -> None:
        """None: the checkpoint could not be saved."""
        ...


class Scheduled:
    """The steps of a point: each multiple of `every`, and the last. known: those that have their answer."""

    def __init__(self, every: int | None, known: set[int]) -> None:
        self._every = every
        self._known = known

    def due(self, step: int, *, is_last: bool) -> bool:
        if step == 0 or step in self._known:
            return False
        return is_last or (self._every is not None and step % self._every == 0)

    def asked(self, step: int) -> None:
        self._known.add(step)

    def forget_after(self, step: int) -> None:
        self._known = {known for known in self._known if known <= step}


class Asking:
    """One checkpoint, asked in a thread of rank 0. `error`, or the answer, is there once it is done."""

    def __init__(self, work: Work, checkpoint: str, device: torch.device) -> None:
        self._work = work
        self._checkpoint = checkpoint
        self._device = device
        self._cut = threading.Event()
        self._began = time.perf_counter()
        self.seconds = 0.0
        self.error: str | None = None
        self.answer: JsonObject = {}
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)
        self._thread.start()

    def done(self, seconds: float) -> bool:
        """Waits for so long at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def cut(self) -> None:
        """Ends at the next check of the work."""
        self._cut.set()

    def _run(self) -> None:
        from launchyard.model.weights.load import load

        try:
            with own_randomness():
                # No graphs: a recording that goes wrong must not reach what trains here.
                loaded = load(self._checkpoint, device=str(self._device), graphs=False)
                self.answer = self._work(loaded, self._check)
        except CutError:
            return
        except Exception as error:  # of a task, of its data, of a disk: training goes on
            self.error = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
        finally:
            self.seconds = round(time.perf_counter() - self._began, 3)

    def _check(self) -> None:
        if self._cut.is_set():
            raise CutError


def ask_together(
    asking: Asking | None, *, is_main: bool, agree: Callable[[bool], tuple[bool, str | None]]
) -> str | None:
    """All ranks wait for rank 0's answer; the reason if a stop was agreed on before it came.

    asking: rank 0's, None where there is nothing to ask. `agree(done)` is asked of all ranks at once: is rank 0 done,
    and does anybody want to stop.
    """
    while True:
        done = is_main and (asking is None or asking.done(POLL_SECONDS))
        finished, reason = agree(done)
        if finished:
            return None
        if reason is not None:
            if asking is not None:
                asking.cut()
            return reason


@contextmanager
def own_randomness() -> Iterator[None]:
    """lm-eval seeds every generator of the process; afterwards they stand where they stood."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
