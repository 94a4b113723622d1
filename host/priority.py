"""Priority of background threads: their work must not cost the thread that trains a core."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

STEP_BACK = 10  # niceness of 19: a tenth of the time that another thread gets on the same core


def step_back() -> None:
    """Lowers the priority of this thread from now on. Does nothing on systems other than Linux."""
    if sys.platform == "linux":  # where threads have priorities of their own
        me = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, max(os.getpriority(os.PRIO_PROCESS, me), STEP_BACK))
