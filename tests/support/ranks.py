"""Run a function in N processes that are ranks of one gloo world."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from tests.support.forked import forking


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
