"""Brings traces from memory into the run directory, beside the training that goes on.

torch writes its JSON in this process, in C++; another process reads, sums up and packs it, so that no step waits for
Python. Knows no loop.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from launchyard.host.processes import python_argv
from launchyard.run import events, layout
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from launchyard.training.distributed import World
from launchyard.training.profile.trace import Trace
from launchyard.training.telemetry.events import OnEvent

DIGEST = "launchyard.training.profile.digest"


class TraceWriter:
    """Takes each trace as its window ends, and writes it in a thread."""

    def __init__(self, run: RunDir, world: World, on_event: OnEvent) -> None:
        self._run = run
        self._world = world
        self._on_event = on_event
        self._threads: list[threading.Thread] = []

    def take(self, trace: Trace) -> None:
        """End the trace and begin to write it. RuntimeError or OSError if it cannot be ended."""
        folder = tempfile.mkdtemp(prefix="trace-", dir=self._world.scratch)
        snapshot = os.path.join(folder, layout.MEMORY_SNAPSHOT)
        try:
            trace.stop(snapshot)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        thread = threading.Thread(target=self._write, args=(trace, folder), name="trace", daemon=True)
        self._threads.append(thread)
        thread.start()

    def not_traced(self, message: str) -> None:
        """Tell that steps are not traced, or that their trace is lost."""
        self._on_event(events.NOT_PROFILED, message=message)

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _write(self, trace: Trace, folder: str) -> None:
        stem = layout.profile(trace.first, self._world.rank)
        try:
            n_bytes = 0
            for ending, made in self._made(trace, folder):
                with open(made, "rb") as file:
                    raw = file.read()
                files.write(self._run.path(stem + ending), raw)
                n_bytes = len(raw)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            self.not_traced(f"{stem}: {said.strip()}")
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        name = stem + layout.TRACE
        self._on_event(events.PROFILED, step=trace.first, last=trace.last, file=name, bytes=n_bytes)

    def _made(self, trace: Trace, folder: str) -> Iterator[tuple[str, str]]:
        """Endings of the files, each with a file that holds it; the trace is the last one."""
        raw = os.path.join(folder, "raw.json")
        trace.profile.export_chrome_trace(raw)
        facts = {
            "first": trace.first,
            "last": trace.last,
            "rank": self._world.rank,
            "world_size": self._world.world_size,
            "attempt": self._world.attempt,
            "host": self._world.host,
            "time": time.time(),
        }
        digest = [*python_argv(sys.executable), "-m", DIGEST, raw, folder, json.dumps(facts)]
        subprocess.run(digest, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        endings = [layout.TRACE_TABLE, layout.TRACE_SUMMARY, layout.TRACE]
        snapshot = [layout.MEMORY_SNAPSHOT] if os.path.exists(os.path.join(folder, layout.MEMORY_SNAPSHOT)) else []
        for ending in [*snapshot, *endings]:
            yield ending, os.path.join(folder, ending)
