"""Threads that may wait: what they do in the background must not cost the thread that trains a core."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

STEP_BACK = 10  # of the 19 there are: a tenth of what a thread gets that wants the same core


def step_back() -> None:
    """Compute where nobody else wants the core, in this thread from now on. Elsewhere than on Linux nothing changes."""
    if sys.platform == "linux":  # where threads have priorities of their own
        me = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, max(os.getpriority(os.PRIO_PROCESS, me), STEP_BACK))
