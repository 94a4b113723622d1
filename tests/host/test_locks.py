"""Locks: one holder at a time among processes and descriptors, free again when a process ends, clear without them."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from launchyard.host import locks

HOLD = """
import sys, time
from launchyard.host.locks import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "made" / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(locks.LockedError, match=r"another process holds the lock.*lock"):
            locks.exclusive(path, wait=False).__enter__()
        holder.kill()
        with locks.exclusive(path):
            pass


def test_one_at_a_time_among_threads(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locks.exclusive(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_shared_holders_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    Path(path).touch()
    readers = [locks.open_shared(path), locks.open_shared(path)]
    file = os.open(path, os.O_RDWR)
    try:
        for reader in readers:
            assert not locks.try_lock(file)
            os.close(reader)
        assert locks.try_lock(file)
        locks.unlock(file)
        locks.lock_shared(file)
    finally:
        os.close(file)


def test_a_file_that_was_replaced_is_another(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert locks.is_file(path, file)
        os.unlink(path)
        assert not locks.is_file(path, file)
        Path(path).touch()
        assert not locks.is_file(path, file)
    finally:
        os.close(file)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"cannot be locked \(No locks available\); choose a folder.*lock"):
        locks.exclusive(tmp_path / "lock").__enter__()
    (tmp_path / "file").touch()
    os.close(locks.open_shared(str(tmp_path / "file")))  # a reader goes on without one
