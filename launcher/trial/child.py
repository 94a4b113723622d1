"""The processes of one trial: started, watched, and always ended. Knows no recipe.

On a CPU their memory is watched besides: they are ended before the machine has to choose whom to end.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launchyard.host.environment import MARK_ATTEMPT, MARK_NODE, MARK_RUN, own_environment
from launchyard.host.ports import free_port
from launchyard.host.processes import (
    descendants,
    end_child,
    end_marked,
    python_argv,
    python_environment,
    start_shielded,
)
from launchyard.launcher.agent.torchrun import torchrun_argv
from launchyard.launcher.agent.torchrun_watch import SURVIVOR_SECONDS
from launchyard.run import layout, own_code
from launchyard.run.records import Shape
from launchyard.run.rundir import RunDir

if TYPE_CHECKING:
    import psutil

TRIAL_WORKER = "launchyard.training.trial.worker"
WATCH_SECONDS = 0.05
ASK_SECONDS = 0.5
FAMILY_SECONDS = 1.0


@dataclass(frozen=True)
class TrialLimits:
    """What the processes of a trial may take: seconds, and bytes of this machine's memory, if they take that."""

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class ChildEnd:
    """code: negative for a signal. peak: bytes that all processes were seen to hold together."""

    code: int | None
    peak: int
    why: str = ""  # of an end by us: "memory", "time" or "enough"


def run_child(
    run: RunDir,
    shape: Shape,
    env: Mapping[str, str],
    *,
    limits: TrialLimits,
    enough: Callable[[], bool],
) -> ChildEnd:
    """Run the workers to their end, or to ours: `enough` is asked often."""
    path = run.path(layout.JOB_LOG)
    try:
        with open(path, "ab") as log:
            child = start_shielded(_argv(run, shape), env=_environment(run, shape, env), output=log)
        try:
            return _watched(child, limits, enough)
        finally:
            end_child(child)
    finally:
        end_marked(run.url)


def _argv(run: RunDir, shape: Shape) -> list[str]:
    if shape.nproc_per_node == 1:
        return [*python_argv(sys.executable), "-u", "-m", TRIAL_WORKER, run.url]
    return torchrun_argv(
        python=sys.executable,
        nnodes=1,
        node_rank=0,
        nproc_per_node=shape.nproc_per_node,
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        rdzv_id="trial",
        module=TRIAL_WORKER,
        args=[run.url],
        shutdown_timeout=int(SURVIVOR_SECONDS),
        log_dir=f"{run.url}/torchrun",
    )


def _environment(run: RunDir, shape: Shape, env: Mapping[str, str]) -> dict[str, str]:
    marks = {MARK_RUN: run.url, MARK_ATTEMPT: "0", MARK_NODE: "0"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if shape.device == "cpu" else {}
    return {**python_environment({**own_environment(), **env}, code=own_code.movable()), **hidden, **marks}


def _watched(child: subprocess.Popen[bytes], limits: TrialLimits, enough: Callable[[], bool]) -> ChildEnd:
    end = time.monotonic() + limits.seconds
    asked = time.monotonic()
    family = _Family(child.pid)
    while child.poll() is None:
        held = family.held()
        if limits.memory is not None and held > limits.memory:
            return ChildEnd(None, family.peak, "memory")
        now = time.monotonic()
        if now > end:
            return ChildEnd(None, family.peak, "time")
        if now - asked > ASK_SECONDS:
            if enough():
                return ChildEnd(None, family.peak, "enough")
            asked = now
        time.sleep(WATCH_SECONDS)
    return ChildEnd(child.returncode, family.peak)


class _Family:
    """A process and all below it. Who they are is looked up now and then: that reads every process of the machine."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._members: list[psutil.Process] = []
        self._known = 0.0

    def held(self) -> int:
        """Bytes of their own. Pages of files, such as those of torch, are not: the kernel drops them when it has to."""
        import psutil

        if time.monotonic() - self._known > FAMILY_SECONDS:
            self._members = descendants(self._pid)
            self._known = time.monotonic()
        held = 0
        for process in self._members:
            with contextlib.suppress(psutil.Error):
                found = process.memory_info()
                held += found.rss - getattr(found, "shared", 0)  # Linux tells them apart
        self.peak = max(self.peak, held)
        return held
