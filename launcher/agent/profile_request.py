"""Brings a request for traces from the run directory to the workers of a node, who look for it in a file of their own.

Knows nothing of what is asked: the workers read that.
"""

from __future__ import annotations

import json
import os

from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage import local
from launchyard.storage.damage import JsonObject
from launchyard.training.profile.requests import REQUEST_FILE

PROFILE_POLL_SECONDS = {True: 0.5, False: 10.0}  # local run directory, remote one


class ProfileRequests:
    """Polled by the agent's watch, for one attempt."""

    def __init__(self, run: RunDir, attempt: int, scratch: str) -> None:
        self._run = run
        self._attempt = attempt
        self._file = os.path.join(scratch, REQUEST_FILE)
        self._last: JsonObject | None = None
        self._task = run.periodic(self._bring, every=PROFILE_POLL_SECONDS[run.local])

    def poll(self) -> None:
        self._task.poll()

    def _bring(self) -> None:
        request = self._run.find_json(layout.PROFILE_REQUEST)
        if request is None or request == self._last or request.get("attempt") != self._attempt:
            return
        self._last = request
        local.replace_file(self._file, json.dumps(request).encode())
