"""Children that end with their parent, whichever of the two asked for it, and variables that stay with their run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchyard.host import environment, processes

# Whole lines in one write: two processes write into one pipe.
SHIELDED = """
import os, sys
from launchyard.host.environment import own_environment
from launchyard.host.processes import start_shielded
argv = [sys.executable, "-c", "import os, time; os.write(1, b'up' + bytes([10])); time.sleep(60)"]
child = start_shielded(argv, env=own_environment(), output=sys.stdout.buffer)
os.write(1, b"%d\\n" % child.pid)
child.wait()
"""
BOUND = """
import os, sys
from launchyard.host.processes import die_with_parent
child = os.fork()
if child:
    os.write(1, b"%d\\n" % child)
    os.waitpid(child, 0)
else:
    die_with_parent()
    os.write(1, b"up\\n")
    import time
    time.sleep(60)
"""


def test_a_process_is_born_between_the_looks_at_the_clock_before_and_after() -> None:
    """To 20 ms: the time of the boot that the system tells is a whole second, and makes it up to one earlier."""
    before = time.time()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        after = time.time()
        try:
            born = processes.born_at(process.pid)
        finally:
            process.kill()
    assert born is not None and before - 0.02 <= born <= after + 0.02
    assert processes.born_at(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("code", [SHIELDED, BOUND], ids=["start_shielded", "die_with_parent"])
def test_a_child_does_not_outlive_its_parent(code: str) -> None:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
            (pid,) = [int(line) for line in lines if line != "up"]
            started = processes.started_at(pid)
        finally:
            parent.kill()
        assert started is not None
        assert processes.wait_until(lambda: not processes.is_alive(pid, started), seconds=10)


def test_children_do_not_inherit_the_marks_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.OF_A_RUN:
        assert name.startswith(environment.OWN_PREFIX)
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("ANOTHER", "1")
    assert not environment.OF_A_RUN & environment.own_environment().keys()
    assert environment.own_environment()["ANOTHER"] == "1"


def test_folders_follow_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launchyard.host import folders

    for kind, find in [
        ("STATE", folders.user_state_folder),
        ("CACHE", folders.user_cache_folder),
        ("CONFIG", folders.user_config_folder),
    ]:
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
        if sys.platform == "linux":
            assert find("a", "b") == tmp_path / kind / "launchyard/a/b"
    assert not list(tmp_path.iterdir()), "asking makes no folder"
