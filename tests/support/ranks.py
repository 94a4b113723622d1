"""Processes that begin with torch imported, and functions that run in N of them as ranks of one gloo world.

They are forked by a server that has it, so they start in a moment. Each has the environment it is given, as a fresh
interpreter would have, and shares nothing with the one that asked for it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch.multiprocessing as mp

PRELOADED = ["torch.distributed.fsdp", "torch._dynamo", "launchyard.training.loop.train", "launchyard.training.compose"]


def forking() -> Any:
    """The context of multiprocessing whose processes begin so."""
    context = multiprocessing.get_context("forkserver")
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


def free_port() -> int:
    """A port that nobody listens on, above those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(61000, 65000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def _enter(
    rank: int, world_size: int, port: int, env: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(
        env,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    function(*args)
    # As a worker ends: a late gloo thread has been seen to abort a normal exit, after all had passed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_ranks(world_size: int, function: Callable[..., None], *args: Any) -> None:
    """An error in any rank is raised here; the others are ended."""
    forking()  # with torch imported
    told = (world_size, free_port(), dict(os.environ), function, args)
    mp.start_processes(_enter, told, nprocs=world_size, start_method="forkserver")
