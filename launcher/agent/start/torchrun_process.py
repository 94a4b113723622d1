"""torchrun as the agent starts it: its own launcher, with workers forked from a server that has their imports.

So the imports of all workers of a node are made once. The process can also stand by, with all of that done, until it
is given an attempt. Nothing is forked from a process that has threads or a device: the server only imports.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import NoReturn, Protocol, cast

from launchyard.host.collector import uncollected
from launchyard.host.environment import SERVER, set_variables, variable
from launchyard.host.processes import name_worker
from launchyard.launcher.agent.start.rendezvous import register_backend

STANDBY = "--standby"
WORKER = "launchyard.training.worker"
_START = [
    "launchyard.launcher.agent.start.bound",
    "torch.distributed.elastic.multiprocessing.api",  # what a forked worker is called by
]
_FIRST = "launchyard.training.imports.first"
_LATER = "launchyard.training.imports.later"
_SHARDED = "launchyard.training.imports.sharded"
_LAST = "launchyard.launcher.agent.start.settled"


@dataclass(frozen=True)
class Assignment:
    """What a process that stands by is told, in a line of JSON: torchrun's words, variables, and where to print."""

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    log: str | None = None

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def main(argv: Sequence[str]) -> None:
    stands_by = argv[1:2] == [STANDBY]
    start_server(worker_module(argv), several=number_of_ranks(argv) > 1, everything=stands_by)
    with uncollected(lasting=True):
        from torch.distributed.launcher.api import elastic_launch
        from torch.distributed.run import config_from_args, parse_args

    given = read_assignment() if stands_by else Assignment(list(argv[1:]))
    print_to(given.log)
    set_variables(given.env)
    args = parse_args(given.words)
    config, _, _ = config_from_args(args)
    told = (args.training_script, args.training_script_args, given.env, given.log)
    keep_log_plain()
    register_backend(args.node_rank)
    workers = Workers()
    workers.remember()
    try:
        elastic_launch(config=config, entrypoint=become_worker)(*told)
    except Exception as error:
        workers.print_ends()
        traceback.print_exception(error)
    else:
        return
    end_now(1)


def worker_module(argv: Sequence[str]) -> str:
    return argv[argv.index("--module") + 1]


def number_of_ranks(argv: Sequence[str]) -> int:
    given = dict(word.split("=", 1) for word in argv if word.startswith(("--nnodes=", "--nproc-per-node=")))
    return int(given["--nnodes"]) * int(given["--nproc-per-node"])


def standby_words(module: str, *, nnodes: int, nproc_per_node: int) -> list[str]:
    """The arguments of a process that stands by: what it must know of the attempt to come, in torchrun's words."""
    return [STANDBY, f"--nnodes={nnodes}", f"--nproc-per-node={nproc_per_node}", "--module", module]


def start_server(module: str, *, several: bool, everything: bool) -> None:
    """Starts the server in a process of its own, which imports while this one does. Only our own worker is known."""
    ours = [_FIRST, *([_SHARDED] if several else []), *([_LATER] if everything else [])] if module == WORKER else []
    multiprocessing.set_forkserver_preload([*_START, *ours, _LAST])
    tempfile.tempdir = variable(SERVER)
    forkserver.ensure_running()
    tempfile.tempdir = None  # as elsewhere


def read_assignment() -> Assignment:
    """Waits for it. The agent that ends, or changes its mind, closes the pipe."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        sys.exit(0)
    return Assignment(**json.loads(line))


def print_to(log: str | None) -> None:
    """From here on into the log of the node, which a process that stands by did not have yet."""
    if log is None:
        return
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def keep_log_plain() -> None:
    """torch's own format imports its compiler, a second's work, at the first failure of a worker."""
    plain = logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s")
    for name in ["torch", *logging.root.manager.loggerDict]:
        for handler in logging.getLogger(name).handlers if name.split(".")[0] == "torch" else ():
            handler.setFormatter(plain)


class Begun(Protocol):
    """What torch.multiprocessing.start_processes returns."""

    processes: Sequence[BaseProcess]
    join: Callable[..., bool]


class Workers:
    """Those of this node, once torchrun has started them: it tells how one of them failed, and no more."""

    def __init__(self) -> None:
        self._by_rank: dict[str, BaseProcess] = {}
        self._told: set[str] = set()  # to end, after another one had failed

    def remember(self) -> None:
        """To be called before torchrun starts them."""
        import torch.multiprocessing

        start = torch.multiprocessing.start_processes

        def begin(*, args: tuple[object, ...], **words: object) -> object:
            context = start(args=args, **words)
            envs = cast("Mapping[int, Mapping[str, str]]", args[2])
            returned = cast("Mapping[int, SimpleQueue[None]]", args[5])
            for local, process in enumerate(context.processes):
                self._take(envs[local]["RANK"], process)
            context.join = returning(context, returned)
            return context

        torch.multiprocessing.start_processes = begin

    def _take(self, rank: str, process: BaseProcess) -> None:
        end = process.terminate

        def terminate() -> None:
            self._told.add(rank)
            end()

        process.terminate = terminate  # type: ignore[method-assign]
        self._by_rank[rank] = process

    def print_ends(self) -> None:
        """How each that failed by itself ended, in torchrun's form, which launcher/agent/root_cause.py reads."""
        for local, (rank, process) in enumerate(self._by_rank.items()):
            if process.exitcode and rank not in self._told:
                ended = f"  rank      : {rank} (local_rank: {local})\n  exitcode  : {process.exitcode}"
                print(ended, file=sys.stderr)
        self._by_rank.clear()


def end_now(code: int) -> NoReturn:
    """Ends this process without taking the interpreter apart, which takes as long as the end of the workers.

    What it shares with them is given back first, else its tracker calls that lost in the log.
    """
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become_worker(module: str, args: list[str], env: dict[str, str], log: str | None) -> None:
    """In the forked process: runs `module` as `python -m` would, and ends it at once, whatever its threads do."""
    gc.enable()  # the server had it off
    print_to(log)
    set_variables(env)
    name_worker(int(variable("RANK") or 0))
    sys.argv = [module, *args]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        code = leaving.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def returning(context: Begun, returned: Mapping[int, SimpleQueue[None]]) -> Callable[..., bool]:
    """`context.join`, after which torchrun has a value of each worker that ended well: it waits for one of each."""
    join = context.join
    given: set[int] = set()

    def join_and_return(*args: object, **words: object) -> bool:
        done = bool(join(*args, **words))
        for local, process in enumerate(context.processes):
            if process.exitcode == 0 and local not in given:
                given.add(local)
                returned[local].put(None)
        return done

    return join_and_return


if __name__ == "__main__":
    main(sys.argv)
