"""Ray Jobs by its HTTP interface: submit, ask, stop, logs. Needs no Ray here; knows no run.

The address is the dashboard's: http(s)://HOST[:PORT][/PATH], or unix:///PATH where only this machine's user
may reach it. Every request is bounded in time: a dashboard that is away must not hold up the caller.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.base import JobStatus
from launchyard.storage.files import typed_path
from launchyard.storage.redact import redact

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0  # a submission waits for Ray to start an actor
_STATES: dict[str, Any] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "STOPPED": "gone",
    "SUCCEEDED": "gone",
    "FAILED": "gone",
}
_UNKNOWN_TO_RAY = re.compile(rb"\s*(Job|Package) \S+ does not exist\.?\s*")  # Ray's own 404; a proxy has other words
_ENTRYPOINT_FAILED = "Job entrypoint command failed"
_REASON_CHARS = 1000  # a resolver's whole output is in Ray's message of a runtime environment that cannot be made
_HTML = re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE)
_OF_A_PROXY = (404, 502, 503, 504)
_ADDRESS_HINT = "see ray.address of the cluster"


class AwayError(LaunchError):
    """The dashboard does not answer."""


class Dashboard:
    """A Ray cluster as its dashboard shows it. The files are those of the same names in the section `ray`."""

    def __init__(
        self, address: str, token_file: str | None = None, headers_file: str | None = None, ca_file: str | None = None
    ) -> None:
        self.address = address.rstrip("/")
        self._token_file = token_file
        self._headers_file = headers_file
        self._ca_file = ca_file

    # -- jobs ----------------------------------------------------------------------------------------------------------
    def submit(self, request: dict[str, Any]) -> str:
        """POST a job; its submission id. UserError with Ray's reason if it refuses."""
        found = self._ask("POST", "/api/jobs/", request)
        if found is None or not found.get("submission_id"):
            raise self._not_ray()
        return str(found["submission_id"])

    def ask(self, job_id: str) -> JobStatus:
        """The state of a job; `unknown`, with the reason, if the answer is not Ray's own or does not come."""
        try:
            found = self._ask("GET", f"/api/jobs/{job_id}", seconds=CONNECT_SECONDS)
            if found is None:
                return JobStatus("forgotten")
            status = str(found.get("status"))
            if status not in _STATES:
                raise self._not_ray()
        except LaunchError as error:
            return JobStatus("unknown", reason=str(error))
        return JobStatus(_STATES[status], status, _reason(status, str(found.get("message") or "")))

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
        while not ((seen := self.ask(job_id)).is_over or seen.state == "unknown"):
            if time.monotonic() > until:
                return False
            time.sleep(0.3)
        return True

    # -- the rest ------------------------------------------------------------------------------------------------------
    def version(self) -> dict[str, Any]:
        """ray_version and more. AwayError, or UserError if it is not a Ray dashboard."""
        found = self._ask("GET", "/api/version", seconds=CONNECT_SECONDS)
        if found is None or "ray_version" not in found:
            raise self._not_ray()
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """The dashboard's summary of every node."""
        found = self._ask("GET", "/nodes?view=summary", seconds=CONNECT_SECONDS)
        try:
            return list((found or {})["data"]["summary"])
        except (KeyError, TypeError) as error:
            raise self._not_ray() from error

    def upload(self, name: str, package: bytes) -> str:
        """Uploads a zip for the nodes; its URI. One that is there is not sent again."""
        path = f"/api/packages/gcs/{name}"
        if self._answer("GET", path, None, CONNECT_SECONDS) is None:
            status, answer = self._send("PUT", path, package, ANSWER_SECONDS)
            if status != http.HTTPStatus.OK:
                raise LaunchError(f"{self.address} does not take our code: {_last_line(answer)}")
        return f"gcs://{name}"

    # -- HTTP ----------------------------------------------------------------------------------------------------------
    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any] | None:
        """The JSON of an answer; None if Ray does not know it. UserError if Ray refuses, or it is not Ray's answer."""
        answer = self._answer(method, path, None if body is None else json.dumps(body).encode(), seconds)
        if answer is None:
            return None
        try:
            found = json.loads(answer)
        except ValueError as error:
            raise self._not_ray() from error
        if not isinstance(found, dict):
            raise self._not_ray()
        return found

    def _answer(self, method: str, path: str, body: bytes | None, seconds: float) -> bytes | None:
        """An answer of status 200; None if Ray says that it does not know it. UserError for any other."""
        status, answer = self._send(method, path, body, seconds)
        if status == http.HTTPStatus.OK:
            return answer
        if status == http.HTTPStatus.NOT_FOUND and _UNKNOWN_TO_RAY.fullmatch(answer):
            return None
        raise self._refusal(status, f"{method} {path}", answer)

    def _refusal(self, status: int, asked: str, answer: bytes) -> UserError:
        """The error for an answer that is not 200, of Ray or of a proxy before it."""
        if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            hint = "ray.token_file of the cluster names the file with its token"
            return UserError(f"{self.address} does not let us in ({status})", hint=hint)
        if 300 <= status < 400:
            message = f"{self.address} redirects {asked} ({status}), as a proxy does that wants a login"
            return UserError(message, hint=_ADDRESS_HINT)
        words = "a page of HTML" if _HTML.match(answer) else _last_line(answer)
        if _HTML.match(answer) or status in _OF_A_PROXY:
            message = f"{self.address} answers {asked} with {status}, and not as Ray does: {words}"
            return UserError(message, hint=f"is a proxy before it, and Ray down? {_ADDRESS_HINT}")
        return UserError(f"Ray refuses {asked}: {words}")

    def _not_ray(self) -> UserError:
        return UserError(f"{self.address} answers, but is not a Ray dashboard", hint=_ADDRESS_HINT)

    def _send(self, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
        headers = {
            "Content-Type": "application/json" if path.startswith("/api/jobs") else "application/zip",
            "User-Agent": "launchyard",  # Ray 2.50 answers 500 to a request without one
        }
        if self._headers_file is not None:
            headers.update(_read_headers(self._headers_file))
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {read_file('token_file', self._token_file).strip()}"
        try:
            with contextlib.closing(self._connection(seconds)) as line:
                line.request(method, self._prefix + path, body, headers)
                answer = line.getresponse()
                return answer.status, answer.read()
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a port or header that is none
            detail = str(error) or type(error).__name__
            hint = "ray.address of the cluster file; details: launch doctor --cluster NAME"
            raise AwayError(f"no Ray dashboard answers at {self.address} ({detail})", hint=hint) from error

    @property
    def _prefix(self) -> str:
        """The path of the address, behind which a proxy has Ray; empty for a socket."""
        where = urllib.parse.urlsplit(self.address)
        return "" if where.scheme == "unix" else where.path

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        where = urllib.parse.urlsplit(self.address)
        if where.scheme == "unix":
            return _UnixConnection(where.path, seconds)
        if where.scheme == "https":
            context = _trust(self._ca_file)
            return http.client.HTTPSConnection(where.hostname or "", where.port, timeout=seconds, context=context)
        return http.client.HTTPConnection(where.hostname or "", where.port, timeout=seconds)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def read_file(key: str, path: str) -> str:
    """Returns the text of a file that the section `ray` names by `key`."""
    try:
        return Path(typed_path(path)).read_text()
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"ray.{key}: {path}: {detail.lower()}") from error


def _read_headers(path: str) -> dict[str, str]:
    """Headers in lines `Name: value`; empty lines and those that begin with # are left out."""
    found = {}
    for number, line in enumerate(read_file("headers_file", path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip()):
            raise UserError(f"ray.headers_file: {path}, line {number}: not a header, which is written `Name: value`")
        found[name.strip()] = value.strip()
    return found


def _trust(ca_file: str | None) -> ssl.SSLContext:
    if ca_file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cadata=read_file("ca_file", ca_file))
    except ssl.SSLError as error:
        raise UserError(f"ray.ca_file: {ca_file}: holds no certificate in PEM") from error


def _reason(status: str, message: str) -> str:
    """Ray's reason why a job waits, or why it could not begin; the entrypoint's own output is in its log."""
    if status == "PENDING" or (status == "FAILED" and not message.startswith(_ENTRYPOINT_FAILED)):
        return redact(" ".join(message.split()))[:_REASON_CHARS]
    return ""


def _last_line(answer: bytes) -> str:
    """Of a traceback, its error."""
    lines = [line.strip() for line in answer.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"
