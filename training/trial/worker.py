"""`python -m launchyard.training.trial.worker RUN_URL`: the worker of a trial, which makes some steps and ends.

It is the worker of a run with another learning rate, a limit to its memory, and an end before anything is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from launchyard.host.processes import die_with_parent
from launchyard.run.rundir import RunDir
from launchyard.training.compose import compose
from launchyard.training.distributed import World, read_world
from launchyard.training.recipe import recipe_of
from launchyard.training.spec import read_workload
from launchyard.training.stop import StopFlag
from launchyard.training.telemetry.events import Events
from launchyard.training.telemetry.instruments import Instruments
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.telemetry import serve_metrics
from launchyard.training.trial.spec import RESULT, TRIAL, Trial, TrialResult
from launchyard.training.worker import record_error, redirect_output

if TYPE_CHECKING:
    import torch

    from launchyard.training.batching import Context
    from launchyard.training.loop.parts import Parts


class TrialOverError(Exception):
    """All steps are made. Raised in the place of one more."""


def main(argv: list[str]) -> int:
    run = RunDir(argv[1])
    world = read_world()
    die_with_parent()
    redirect_output(run, world)
    try:
        attempt_trial(run, world, Trial.model_validate(run.read_json(TRIAL)))
    except BaseException as error:
        lift_limit()  # to tell of it takes some
        traceback.print_exception(error)
        record_error(run, world, error, None)
        return 1
    return 0


def attempt_trial(run: RunDir, world: World, trial: Trial) -> None:
    import torch

    torch.zeros(1)
    held = psutil.Process().memory_info().rss
    if trial.memory_bytes is not None:
        limit_memory(trial.memory_bytes)
    recipe = recipe_of(run, world.attempt)
    flag = StopFlag(world.scratch, world.job_end)
    instruments = Instruments(PhaseClock(), serve_metrics(run, world, recipe), Events(run, world))
    parts, _ = compose(run, world, recipe, read_workload(run), flag, instruments)
    made = make_steps(parts, trial)
    if world.is_main:
        for rows in parts.telemetry.rows.appenders:
            rows.flush(sync=True)
        result = TrialResult(peak=made.peak, runtime=held, tensors=made.tensors, cpu_seconds=made.cpu_seconds)
        run.write_json(RESULT, result.model_dump(mode="json"))


@dataclass(frozen=True)
class Made:
    """Of the steps of a trial: bytes as in TrialResult, CPU seconds of each."""

    peak: int
    tensors: int | None
    cpu_seconds: tuple[float, ...]


def make_steps(parts: Parts, trial: Trial) -> Made:
    """The steps of the trial by the one loop, of which on_step of the user's code is not told. On a GPU one more, as it
    reads the numbers of a step during the next.
    """
    from launchyard.training.loop.train import train
    from launchyard.training.trial.live_bytes import LiveBytes

    device = parts.context.device
    n_steps = trial.n_steps + (device.type == "cuda")
    begins: list[float] = []
    peak = 0
    counted = LiveBytes() if trial.counts_tensors and _can_count(parts) else None
    with contextlib.ExitStack() as counting, contextlib.suppress(TrialOverError):

        def rate(context: Context, step: int) -> float:
            nonlocal peak
            begins.append(time.process_time())
            if step == n_steps:
                peak = held_at_most(device)
                if counted is not None:
                    counted.add_all()
                    counting.enter_context(counted)
            if step >= n_steps + (counted is not None):
                raise TrialOverError
            return trial.lr(step) or parts.rate(context, step)

        train(dataclasses.replace(parts, rate=rate, hooks=None))
    cpu = tuple(after - before for before, after in itertools.pairwise(begins[: n_steps + 1]))
    return Made(peak, None if counted is None else counted.peak, cpu)


def _can_count(parts: Parts) -> bool:
    """Not where a GPU counts itself, nor where code is compiled, nor tensors that several workers share."""
    recipe = parts.context.recipe
    return parts.context.device.type == "cpu" and parts.context.world.world_size == 1 and not recipe.parallel.compile


def held_at_most(device: torch.device) -> int:
    """Bytes: of a GPU those of the tensors, on a CPU those of this process."""
    from launchyard.training.telemetry.recorder import memory_of

    return memory_of(device)["peak"]


def limit_memory(size: int) -> None:
    """Lets allocations fail once this process would hold so many bytes, in place of a machine that is out of memory.

    By the kernel, of private memory alone (Linux); elsewhere whoever watches this process has to end it.
    """
    used = psutil.Process().memory_info()
    private = getattr(used, "data", None)  # of Linux
    if private is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = max(private + size - used.rss, private + (1 << 20))
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def lift_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as the worker of a run ends
