"""Threads that step back, and the one that trains, which does not."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from launchyard.host.priority import STEP_BACK, step_back


def mine() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_only_the_thread_that_says_so_steps_back() -> None:
    before = mine()
    with ThreadPoolExecutor(1, initializer=step_back) as pool:
        assert pool.submit(mine).result() == max(before, STEP_BACK)
    assert mine() == before
