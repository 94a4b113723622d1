"""Ray Jobs by its HTTP interface: submit, ask, stop, logs. Needs no Ray here; knows no run.

The address is the dashboard's: http(s)://HOST:PORT, or unix:///PATH where only this machine's user may reach it.
Every request is bounded in time: a dashboard that is away must not hold up the caller.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.base import JobStatus

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0  # a submission waits for Ray to start an actor
_STATES: dict[str, Any] = {"PENDING": "queued", "RUNNING": "running"}


class AwayError(LaunchError):
    """The dashboard does not answer."""


class Dashboard:
    """A Ray cluster as its dashboard shows it. `token_file`: of a cluster that wants a token."""

    def __init__(self, address: str, token_file: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._token_file = token_file

    # -- jobs ----------------------------------------------------------------------------------------------------------
    def submit(self, request: dict[str, Any]) -> str:
        """POST a job; its submission id. UserError with Ray's reason if it refuses."""
        return str(self._ask("POST", "/api/jobs/", request)["submission_id"])

    def ask(self, job_id: str) -> JobStatus:
        """The state of a job; `unknown` without a valid answer, also if a proxy refuses or the token is wrong."""
        try:
            found = self._ask("GET", f"/api/jobs/{job_id}", seconds=CONNECT_SECONDS)
        except LaunchError as error:
            return JobStatus("unknown", reason=str(error))
        if found is None:
            return JobStatus("gone")
        status = str(found.get("status", ""))
        message = str(found.get("message") or "")
        return JobStatus(_STATES.get(status, "gone"), status, message if status == "PENDING" else "")

    def stop(self, job_id: str) -> None:
        """As `ray job stop`: TERM for its entrypoint. LaunchError if the dashboard does not take it."""
        self._ask("POST", f"/api/jobs/{job_id}/stop")

    def logs(self, job_id: str) -> str:
        """The output of its entrypoint; empty if it is not known."""
        with contextlib.suppress(LaunchError):
            return str((self._ask("GET", f"/api/jobs/{job_id}/logs") or {}).get("logs") or "")
        return ""

    def wait_gone(self, job_id: str, *, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.ask(job_id).state not in ("gone", "unknown"):
            if time.monotonic() > until:
                return False
            time.sleep(0.3)
        return True

    # -- the rest ------------------------------------------------------------------------------------------------------
    def version(self) -> dict[str, Any]:
        """ray_version and more. AwayError, or UserError if it is not a Ray dashboard."""
        found = self._ask("GET", "/api/version", seconds=CONNECT_SECONDS)
        if not isinstance(found, dict) or "ray_version" not in found:
            hint = "see ray.address of the cluster"
            raise UserError(f"{self.address} answers, but is not a Ray dashboard", hint=hint)
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """The dashboard's summary of every node."""
        found = self._ask("GET", "/nodes?view=summary", seconds=CONNECT_SECONDS)
        return list(found["data"]["summary"]) if found else []

    def upload(self, name: str, package: bytes) -> str:
        """Uploads a zip for the nodes; its URI. One that is there is not sent again."""
        path = f"/api/packages/gcs/{name}"
        if self._send("GET", path, None, CONNECT_SECONDS)[0] == http.HTTPStatus.NOT_FOUND:
            status, answer = self._send("PUT", path, package, ANSWER_SECONDS)
            if status != http.HTTPStatus.OK:
                raise LaunchError(f"{self.address} does not take our code: {_last_line(answer)}")
        return f"gcs://{name}"

    # -- HTTP ----------------------------------------------------------------------------------------------------------
    def _ask(self, method: str, path: str, body: Any = None, *, seconds: float = ANSWER_SECONDS) -> Any:
        """The JSON of an answer; None if it is not there (404). UserError if Ray refuses."""
        raw = None if body is None else json.dumps(body).encode()
        status, answer = self._send(method, path, raw, seconds)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            hint = "ray.token_file of the cluster names the file with its token"
            raise UserError(f"{self.address} does not let us in ({status})", hint=hint)
        if status != http.HTTPStatus.OK:
            raise UserError(f"Ray refuses {method} {path}: {_last_line(answer)}")
        try:
            return json.loads(answer)
        except ValueError as error:
            hint = "see ray.address of the cluster"
            raise UserError(f"{self.address} answers, but is not a Ray dashboard", hint=hint) from error

    def _send(self, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json" if path.startswith("/api/jobs") else "application/zip"}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {_read_token(self._token_file)}"
        try:
            with contextlib.closing(self._connection(seconds)) as line:
                line.request(method, path, body, headers)
                answer = line.getresponse()
                return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            detail = str(error) or type(error).__name__
            hint = "ray.address of the cluster file; details: launch doctor --cluster NAME"
            raise AwayError(f"no Ray dashboard answers at {self.address} ({detail})", hint=hint) from error

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        where = urllib.parse.urlsplit(self.address)
        if where.scheme == "unix":
            return _UnixConnection(where.path, seconds)
        if where.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(where.hostname or "", where.port, timeout=seconds, context=context)
        return http.client.HTTPConnection(where.hostname or "", where.port or 8265, timeout=seconds)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _read_token(path: str) -> str:
    try:
        return Path(os.path.expanduser(path)).read_text().strip()
    except OSError as error:
        raise UserError(f"ray.token_file: {path}: {(error.strerror or str(error)).lower()}") from error


def _last_line(answer: bytes) -> str:
    """Of a traceback, its error."""
    lines = [line.strip() for line in answer.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"
