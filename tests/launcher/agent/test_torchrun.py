"""torchrun's flags: what the installed one accepts, and what shields its workers from signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launchyard.host.ports import free_port
from launchyard.launcher.agent.torchrun import installed_flags, torchrun_argv
from launchyard.training.distributed import node_address

SMALL = {"python": sys.executable, "nnodes": 1, "node_rank": 0, "module": "job", "rdzv_id": "a b"}


def test_optional_flags_follow_the_installed_torch() -> None:
    common = {**SMALL, "nproc_per_node": 1, "rdzv_endpoint": "127.0.0.1:61000", "args": [], "shutdown_timeout": 7}
    old = torchrun_argv(**common, flags=frozenset())
    assert not [word for word in old if "signals" in word or "shutdown" in word]
    new = torchrun_argv(**common, flags=frozenset({"--signals-to-handle", "--shutdown-timeout"}))
    assert set(new) - set(old) == {"--signals-to-handle=SIGQUIT", "--shutdown-timeout=7"}
    assert "--max-restarts=0" in old


def test_flags_are_found_without_importing_torch() -> None:
    code = (
        "import sys; from launchyard.launcher.agent import torchrun; torchrun.installed_flags(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost", "[::1]"])
def test_many_nodes_never_meet_on_loopback(head: str) -> None:
    with pytest.raises(ValueError, match="2 nodes cannot meet on a loopback address"):
        torchrun_argv(**{**SMALL, "nnodes": 2}, nproc_per_node=1, rdzv_endpoint=f"{head}:61000", args=[])


def test_the_installed_torchrun_understands_every_word(tmp_path: Path) -> None:
    """Real torchrun, two workers, arguments with spaces and dashes; TERM and USR1 leave it alone."""
    (tmp_path / "job.py").write_text(
        textwrap.dedent("""
            import json, os, signal, sys, time
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            facts = [sys.argv[1:], os.environ["RANK"], os.environ["WORLD_SIZE"]]
            path = f"rank-{os.environ['RANK']}"
            open(path + ".tmp", "w").write(json.dumps(facts))
            os.rename(path + ".tmp", path)
            while not os.path.exists("go on"):
                time.sleep(0.05)
        """)
    )
    argv = torchrun_argv(
        **SMALL,
        nproc_per_node=2,
        rdzv_endpoint=f"127.0.0.1:{free_port()}",
        args=["memory://a b;c", "--nnodes=9"],
        shutdown_timeout=5,
        flags=installed_flags(),
    )

    def ignore() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    torchrun = subprocess.Popen(argv, cwd=tmp_path, env=env, preexec_fn=ignore, start_new_session=True)
    try:
        ranks = [tmp_path / f"rank-{rank}" for rank in range(2)]
        end = time.monotonic() + 60
        while not all(path.exists() for path in ranks):
            assert torchrun.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        said = [path.read_text() for path in ranks]
        assert said == [f'[["memory://a b;c", "--nnodes=9"], "{rank}", "2"]' for rank in range(2)]
        for number in (signal.SIGTERM, signal.SIGUSR1):
            torchrun.send_signal(number)
        time.sleep(0.3)
        assert torchrun.poll() is None
        (tmp_path / "go on").touch()
        assert torchrun.wait(60) == 0
    finally:
        torchrun.kill()
        torchrun.wait()
        (tmp_path / "go on").touch()  # workers that outlived it leave by themselves


def test_a_node_has_the_rank_that_it_was_given(tmp_path: Path) -> None:
    """Not the one of its name or its process, by which torchrun sorts: what was left on it is of that rank."""
    (tmp_path / "job.py").write_text("import os, sys; open(sys.argv[1], 'w').write(os.environ['RANK'])")
    host = node_address()
    common = {**SMALL, "nnodes": 2, "nproc_per_node": 1, "rdzv_endpoint": f"{host}:{free_port()}"}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    started = []
    for rank in (1, 0):  # by the numbers of processes the other way round
        argv = torchrun_argv(**{**common, "node_rank": rank}, args=[f"node-{rank}"], flags=installed_flags())
        started.append(subprocess.Popen(argv, cwd=tmp_path, env=env, start_new_session=True))
    assert started[0].pid < started[1].pid
    try:
        assert [torchrun.wait(120) for torchrun in started] == [0, 0]
    finally:
        for torchrun in started:
            torchrun.kill()
            torchrun.wait()
    assert [(tmp_path / f"node-{rank}").read_text() for rank in range(2)] == ["0", "1"]
