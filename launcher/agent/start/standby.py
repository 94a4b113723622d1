"""The next torchrun of an agent: started while the workers train, with all imports made, and given an attempt later.

It costs memory, and the processor time of the imports. Without one, torchrun is started
when it is needed, and does the same. Knows no policy.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from typing import IO

from launchyard.host.environment import JOB_END, MARK_ATTEMPT, SCRATCH, SERVER, SLOTS
from launchyard.host.processes import python_argv, start_shielded
from launchyard.launcher.agent.start.started import Started, make_folder
from launchyard.launcher.agent.start.torchrun_process import Assignment, standby_words
from launchyard.launcher.agent.torchrun import PROCESS
from launchyard.run.records import Shape
from launchyard.training.telemetry.heartbeat import read_pulses

OF_AN_ATTEMPT = frozenset(
    {MARK_ATTEMPT, SCRATCH, JOB_END, SERVER, SLOTS}
)  # variables that the next attempt has others of
POLLED_SECONDS = 1.0  # between two looks at the pulses
STEADY_SECONDS = 2.0  # of steps: the imports of the next attempt do not hold up the start of this one
ROOM_BYTES = 2 << 30  # of memory that is free: a node that is short of it is left alone


@dataclass
class _Waiting:
    started: Started
    order: IO[bytes]
    lasting: dict[str, str]  # the variables that it was started with
    attempt: str


class Standby:
    """At most one process waits, for the attempt that follows the one it was made in."""

    def __init__(self) -> None:
        self._waiting: _Waiting | None = None
        self._asked = 0.0
        self._steady: dict[str, float] = {}  # attempt -> when it was first seen to train

    def poll(self, env: dict[str, str], shape: Shape, module: str) -> None:
        """Makes the next torchrun ready once the workers of an attempt, whose variables `env` is, train steadily."""
        now = time.monotonic()
        if self._waiting is not None or now - self._asked < POLLED_SECONDS:
            return
        self._asked = now
        pulses = read_pulses(env[SCRATCH])
        if not pulses or any(pulse.step == 0 for pulse in pulses):
            return
        since = self._steady.setdefault(env[MARK_ATTEMPT], now)
        if now - since >= STEADY_SECONDS and _has_room():
            self._prepare(env, standby_words(module, nnodes=shape.nnodes, nproc_per_node=shape.nproc_per_node))

    def _prepare(self, env: dict[str, str], words: list[str]) -> None:
        """The process is marked as one of the attempt to come."""
        attempt = str(int(env[MARK_ATTEMPT]) + 1)
        lasting = _lasting(env)
        read, write = os.pipe()
        with open(os.devnull, "wb") as nowhere, os.fdopen(read, "rb") as orders:
            argv = [*python_argv(sys.executable), "-m", PROCESS, *words]
            folder = make_folder()
            variables = {**lasting, MARK_ATTEMPT: attempt, SERVER: folder}
            started = Started(start_shielded(argv, env=variables, output=nowhere, orders=orders), folder)
        self._waiting = _Waiting(started, os.fdopen(write, "wb"), lasting, attempt)

    def take(self, words: list[str], *, env: dict[str, str], log: str) -> Started | None:
        """Gives the attempt of `env` to the process that waits; None if there is none for just that."""
        waiting = self._waiting
        if waiting is None:
            return None
        if (
            waiting.started.child.poll() is not None
            or waiting.lasting != _lasting(env)
            or waiting.attempt != env[MARK_ATTEMPT]
        ):
            self.close()
            return None
        self._waiting = None
        own = {name: env[name] for name in OF_AN_ATTEMPT - {SERVER} if name in env}
        with contextlib.suppress(BrokenPipeError), waiting.order as order:
            order.write(Assignment(words, own, log).line())
            return waiting.started
        waiting.started.end()
        return None

    def close(self) -> None:
        """Ends the process that waits."""
        waiting = self._waiting
        self._waiting = None
        if waiting is not None:
            with contextlib.suppress(BrokenPipeError):
                waiting.order.close()
            waiting.started.end()


def _lasting(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in OF_AN_ATTEMPT}


def _has_room() -> bool:
    import psutil

    return int(psutil.virtual_memory().available) >= ROOM_BYTES
