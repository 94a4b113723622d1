"""Processes that begin with torch imported: forked by a server that has it, so that they start in a moment.

Each is a process of its own with the environment it is given, as a fresh interpreter would be; it shares nothing with
the one that asked for it.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from typing import Any

PRELOADED = ["torch.distributed.fsdp", "torch._dynamo", "launchyard.training.loop", "launchyard.training.compose"]


def forking() -> Any:
    """The context of multiprocessing whose processes begin so."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class ForkedProcess:
    """A module run as a program, `python -m MODULE ARGS`, with the interface of subprocess.Popen."""

    def __init__(self, module: str, args: list[str], *, env: Mapping[str, str]) -> None:
        self.args = [module, *args]
        self._process: ForkServerProcess = forking().Process(target=_run_module, args=(module, args, dict(env)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run_module(module: str, args: list[str], env: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server's children ignore it
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
