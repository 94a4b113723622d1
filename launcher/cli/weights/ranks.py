"""`--ranks N`: a command of the command line again in N processes of this machine, which share a model. No torch here.

Under torchrun the processes are there already; see model/parallel/ranks.py for what they are to each other.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import click

from launchyard.errors import EXIT_FAILED, UserError
from launchyard.host.environment import own_environment, variable
from launchyard.host.ports import free_port
from launchyard.host.processes import die_with_parent, python_argv, python_environment
from launchyard.launcher.cli.weights.find import weights_errors

ranks_option = click.option(
    "--ranks", type=click.IntRange(min=1), metavar="N", help="Processes that share the model, on a GPU each or the CPU."
)
_LAST_WORDS_SECONDS = 3.0  # of rank 0, when another one has failed


def has_ranks_to_start(n_ranks: int | None) -> bool:
    """False in one of the ranks, and where there is to be one only."""
    here = int(variable("WORLD_SIZE") or 1)
    if here == 1:
        return (n_ranks or 1) > 1
    if n_ranks not in (None, here):
        raise UserError(f"--ranks is {n_ranks}, and torchrun started {here}", hint="leave --ranks out")
    return False


def run_in_ranks(n_ranks: int, place: str, arguments: Sequence[str]) -> int:
    """The command with these arguments in every rank; rank 0 speaks. The exit code of the first that failed, or 0.

    UserError if so many cannot share the model in `place`.
    """
    with weights_errors():
        from launchyard.model.parallel.share import share_config
        from launchyard.model.weights.source import read_config

        share_config(read_config(place), 0, n_ranks)
    argv = [*python_argv(sys.executable), "-m", "launchyard", *arguments]
    environment = _environment(n_ranks)
    with tempfile.NamedTemporaryFile() as words, tempfile.NamedTemporaryFile() as typed:
        if "-" in arguments:  # standard input, of which each rank reads all
            typed.write(sys.stdin.buffer.read())
            typed.flush()
        ranks = [_start(argv, environment, rank, typed.name, words.file) for rank in range(n_ranks)]
        try:
            return _wait(ranks, words.file)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


@contextmanager
def as_rank() -> Iterator[None]:
    """Lets one of several ranks, and only the first, print; nothing of them outlives who started them."""
    if int(variable("WORLD_SIZE") or 1) == 1:
        yield
        return
    die_with_parent()
    with contextlib.ExitStack() as stack:
        if variable("RANK") != "0":
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
    from launchyard.model.parallel.ranks import part_ranks

    part_ranks()


def device_names(typed: str) -> list[str]:
    """Of NAME,NAME."""
    return [name.strip() for name in typed.split(",")]


def _environment(n_ranks: int) -> dict[str, str]:
    """Of all ranks; each takes its part of the cores, unless a number of threads is set."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n_ranks))}
    meeting = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return python_environment({**threads, **own_environment(), **meeting}, code=None)


def _start(
    argv: list[str], environment: dict[str, str], rank: int, typed: str, words: IO[bytes]
) -> subprocess.Popen[bytes]:
    """typed: the file that is its standard input; words: where its errors go, unless it is rank 0."""
    env = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with open(typed, "rb") as stdin:
        if rank == 0:
            return subprocess.Popen(argv, env=env, stdin=stdin)
        return subprocess.Popen(argv, env=env, stdin=stdin, stdout=subprocess.DEVNULL, stderr=words)


def _wait(ranks: list[subprocess.Popen[bytes]], words: IO[bytes]) -> int:
    while not any(process.poll() for process in ranks):
        if all(process.poll() == 0 for process in ranks):
            return 0
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if code := ranks[0].wait(_LAST_WORDS_SECONDS):
            return code if code > 0 else EXIT_FAILED
    words.seek(0)
    click.echo(words.read().decode(errors="replace"), nl=False, err=True)
    return max(EXIT_FAILED, *(process.poll() or 0 for process in ranks))
