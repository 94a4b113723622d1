"""Ray's dashboard without Ray: an HTTP server on loopback that answers as that of Ray 2.60, and runs jobs here.

What a job imports as `ray` is tests/support/standin_ray. A test turns the knobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.standin import HERE

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "0" * 40, "session_name": "session_2026"}
GIB = 1 << 30


@dataclass
class FakeJob:
    """A job as the dashboard tells it."""

    request: dict[str, Any]
    status: str = "PENDING"
    message: str = "Job has not started yet. It may be waiting for resources or the runtime environment to be set up."
    process: subprocess.Popen[bytes] | None = None
    stopped: bool = False


@dataclass
class FakeRay:
    """`hold`: jobs stay PENDING. `replies`: what is answered instead, by `METHOD /path`. `delay`: seconds before."""

    folder: Path
    hold: bool = False
    delay: float = 0.0
    replies: dict[str, tuple[int, str]] = field(default_factory=dict)
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)
    _raylets: dict[int, socket.socket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.nodes(2)
        outer = self

        class Handler(_Handler):
            ray = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    # -- what the cluster does -----------------------------------------------------------------------------------------
    def nodes(self, count: int, *, cpus: float = 2.0, free: float | None = None, dead: tuple[int, ...] = ()) -> None:
        """From now on there are so many nodes with so much each."""
        names = [{f"node:127.0.0.{number + 1}": 1.0} for number in range(count)]
        found = [
            {
                "NodeID": f"{number:056x}", "Alive": number not in dead, "NodeManagerHostname": f"host{number}",
                "NodeManagerAddress": f"127.0.0.{number + 1}", "NodeManagerPort": self._raylet(number),
                "Resources": {"CPU": cpus, "memory": 4.0 * GIB, **names[number]},
                "Free": {"CPU": cpus if free is None else free, "memory": 4.0 * GIB, **names[number]},
            }
            for number in range(count)
        ]  # fmt: skip
        self._write("nodes.json", found)

    def _raylet(self, number: int) -> int:
        """The port where the raylet of a node listens."""
        if number not in self._raylets:
            self._raylets[number] = socket.create_server((f"127.0.0.{number + 1}", 0))
        return int(self._raylets[number].getsockname()[1])

    def lose_node(self, number: int) -> None:
        """Nothing listens there any more; the Ray that knows the node has not noticed yet."""
        self._raylets.pop(number).close()

    def break_nodes(self, *numbers: int) -> None:
        """These nodes cannot make a runtime environment."""
        self._write("bad.json", [f"{number:056x}" for number in numbers])

    def drain(self, number: int, seconds: float) -> None:
        self._write("drains.json", {f"{number:056x}": int((time.time() + seconds) * 1000)})

    def given_back(self) -> list[int]:
        """Nodes that were reserved and are not any more."""
        path = self.folder / "given_back"
        return [int(line, 16) for line in path.read_text().split()] if path.exists() else []

    def _write(self, name: str, value: Any) -> None:
        fresh = self.folder / f"{name}.new"
        fresh.write_text(json.dumps(value))
        fresh.rename(self.folder / name)

    def start(self, job_id: str) -> None:
        """A job that was held begins."""
        job = self.jobs[job_id]
        ours = {
            "PYTHONPATH": f"{HERE / 'standin_ray'}:{HERE}:{HERE.parents[1] / 'src'}",
            "STANDIN_RAY": str(self.folder), "STANDIN_AGENT": "standin_agent",
        }  # fmt: skip
        env = {**os.environ, **job.request["runtime_env"].get("env_vars", {}), **ours}
        with open(self.log(job_id), "ab") as log:
            job.process = subprocess.Popen(
                ["/bin/sh", "-c", job.request["entrypoint"]],
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        job.status, job.message = "RUNNING", "Job is currently running."

    def log(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.log"

    def close(self) -> None:
        self.away()
        for raylet in self._raylets.values():
            raylet.close()
        for job in self.jobs.values():
            if job.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job.process.pid, signal.SIGKILL)
                job.process.wait()

    def away(self) -> None:
        """From now on connections are refused."""
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- answers -------------------------------------------------------------------------------------------------------
    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str]:
        if path.startswith("/api/packages/gcs/"):
            return self._package(method, path.rpartition("/")[2], body)
        if (method, path) == ("GET", "/api/version"):
            return 200, json.dumps(VERSION)
        if (method, path) == ("GET", "/nodes?view=summary"):
            told = {"result": True, "msg": "Node summary fetched."}
            return 200, json.dumps({**told, "data": {"summary": self._summary()}})
        if (method, path) == ("POST", "/api/jobs/"):
            return self._submit(json.loads(body))
        job_id, _, what = path.removeprefix("/api/jobs/").partition("/")
        job = self.jobs.get(job_id)
        if job is None:
            return 404, f"Job {job_id} does not exist"
        self._refresh(job_id, job)
        if what == "logs":
            log = self.log(job_id)
            return 200, json.dumps({"logs": log.read_text() if log.exists() else ""})
        if what == "stop":
            self._stop(job)
            return 200, json.dumps({"stopped": True})
        told = {"type": "SUBMISSION", "submission_id": job_id, "job_id": None, "status": job.status}
        return 200, json.dumps({**told, "message": job.message, "entrypoint": job.request["entrypoint"]})

    def _package(self, method: str, name: str, body: bytes) -> tuple[int, str]:
        if method == "PUT":
            self.packages[name] = body
        elif name not in self.packages:
            return 404, f"Package gcs://{name} does not exist"
        return 200, ""

    def _summary(self) -> list[dict[str, Any]]:
        found = json.loads((self.folder / "nodes.json").read_text())
        return [
            {
                "hostname": node["NodeManagerHostname"],
                "raylet": {
                    "nodeId": node["NodeID"], "state": "ALIVE" if node["Alive"] else "DEAD",
                    "resourcesTotal": node["Resources"],
                },
            }
            for node in found
        ]  # fmt: skip

    def _submit(self, request: dict[str, Any]) -> tuple[int, str]:
        job_id = request.get("submission_id") or f"raysubmit_{len(self.jobs):016d}"
        if job_id in self.jobs:
            said = f"ValueError: Job with submission_id {job_id} already exists. Please use a different submission_id."
            return 400, f'Traceback (most recent call last):\n  File "job_head.py", line 418, in submit_job\n{said}\n'
        self.jobs[job_id] = FakeJob(request)
        if not self.hold:
            self.start(job_id)
        return 200, json.dumps({"job_id": job_id, "submission_id": job_id})

    def _refresh(self, job_id: str, job: FakeJob) -> None:
        code = job.process.poll() if job.process is not None else None
        if code is None or job.status not in ("PENDING", "RUNNING"):
            return
        job.status = "STOPPED" if job.stopped else "SUCCEEDED" if code == 0 else "FAILED"
        said = f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):"
        job.message = {"SUCCEEDED": "Job finished successfully.", "STOPPED": "Job was intentionally stopped."}.get(
            job.status, f"{said}\n{self.log(job_id).read_text()[-20_000:]}"
        )

    def _stop(self, job: FakeJob) -> None:
        job.stopped = True
        if job.process is None:
            job.status, job.message = "STOPPED", "Job was intentionally stopped."
        elif job.process.poll() is None:
            job.process.terminate()


class _Handler(BaseHTTPRequestHandler):
    ray: FakeRay

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {self.path}"
        self.ray.heard.append(asked)
        time.sleep(self.ray.delay)
        status, text = self.ray.replies.get(asked) or self.ray.answer(self.command, self.path, body)
        raw = text.encode()
        with contextlib.suppress(OSError):  # who asked has given up
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    do_GET = do_POST = do_PUT = reply

    def log_message(self, *words: Any) -> None:
        pass
