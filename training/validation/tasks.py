"""Tasks of lm-evaluation-harness while a run trains: rank 0 asks a checkpoint in a thread, the others wait with it.

The model that is asked is loaded from the run's own checkpoint, so a score is that of `launch evaluate` of it, and the
training's weights and random state stay untouched. A step that has a row is not asked again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from launchyard.host.packages import install_command
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.distributed import World, from_rank_zero
from launchyard.training.sections.validation import ValidationConfig

if TYPE_CHECKING:
    from launchyard.model.evaluate.tasks import TaskRow

POLL_SECONDS = 0.25  # between two agreements of the ranks that wait
KEPT = ("task", "metric", "filter", "value", "stderr", "n_shot", "n_samples", "version")


class _CutError(Exception):
    """Nobody waits for the answers any more."""


class TaskPoints:
    """Which steps are due. `known`: steps with scores, the same on every rank; `newest`: the last scores there are."""

    def __init__(self, config: ValidationConfig, *, known: set[int], newest: list[JsonObject]) -> None:
        self._config = config
        self._known = known
        self.newest = newest

    def due(self, step: int, *, is_last: bool) -> bool:
        if step == 0 or step in self._known:
            return False
        every = self._config.tasks_every_steps
        return is_last or (every is not None and step % every == 0)

    def asked(self, step: int) -> None:
        self._known.add(step)

    def ask(self, checkpoint: str, device: torch.device) -> Asking:
        return Asking(self._config, checkpoint, str(device))


def open_task_points(run: RunDir, world: World, config: ValidationConfig, *, step: int) -> TaskPoints:
    """For a run that goes on from `step`. ValueError if lm_eval is not there."""
    rows: list[JsonObject] = []
    if world.is_main:
        if find_spec("lm_eval") is None:
            raise ValueError(
                "validation.tasks need lm_eval, which is not installed where the workers run; "
                f"{install_command('evaluate')}, or leave them out"
            )
        rows = [row for row in run.rows(layout.TASKS) if row["step"] <= step]
    known = from_rank_zero([int(row["step"]) for row in rows])
    return TaskPoints(config, known=set(known), newest=rows[-1]["scores"] if rows else [])


class Asking:
    """One checkpoint, asked in a thread of rank 0. `error` or `scores` are there once it is done."""

    def __init__(self, config: ValidationConfig, checkpoint: str, device: str) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._device = device
        self._cut = threading.Event()
        self._began = time.perf_counter()
        self.seconds = 0.0
        self.error: str | None = None
        self.weights = ""
        self.scores: list[JsonObject] = []
        self._thread = threading.Thread(target=self._run, name="tasks", daemon=True)
        self._thread.start()

    def done(self, seconds: float) -> bool:
        """Waits for so long at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def cut(self) -> None:
        """Ends with the batch that is being computed."""
        self._cut.set()

    def _run(self) -> None:
        try:
            with own_randomness():
                self.weights, rows = self._ask()
            self.scores = [{key: value for key, value in row.items() if key in KEPT} for row in rows]
        except _CutError:
            return
        except Exception as error:  # of a task, of its data, of a disk: training goes on
            self.error = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
        finally:
            self.seconds = round(time.perf_counter() - self._began, 3)

    def _ask(self) -> tuple[str, list[TaskRow]]:
        """The digest of the weights that were asked, and their scores."""
        from launchyard.model.evaluate.harness import HarnessModel
        from launchyard.model.evaluate.tasks import TaskList, TaskSettings, run_tasks
        from launchyard.model.weights.load import digest_in_memory, load

        config = self._config
        loaded = load(self._checkpoint, device=self._device)
        settings = TaskSettings(
            num_fewshot=config.tasks_num_fewshot, limit=config.tasks_limit, chat=config.tasks_chat_template
        )
        model = HarnessModel(loaded, on_progress=self._look_up)
        return digest_in_memory(loaded.transformer), run_tasks(model, TaskList(config.tasks), settings).rows

    def _look_up(self, kind: str, done: int, total: int) -> None:
        if self._cut.is_set():
            raise _CutError


def ask_together(
    asking: Asking | None, *, is_main: bool, agree: Callable[[bool], tuple[bool, str | None]]
) -> str | None:
    """All ranks wait for rank 0's answers; the reason if a stop was agreed on before they came.

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
