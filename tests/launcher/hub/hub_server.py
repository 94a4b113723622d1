"""A small Hugging Face hub on loopback, with faults to order. Fields and headers are those of the real one."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class SmallHub:
    """`models`: files of each repository, of a set of data by datasets/ORG/NAME.

    Faults: `failures` are statuses of the next answers, after `cut_after` bytes the next file's connection ends,
    `spoiled` paths come with other bytes, `gated` repositories want `token`.
    """

    models: dict[str, dict[str, bytes]]
    failures: list[int] = field(default_factory=list)
    cut_after: int | None = None
    stall_after: int | None = None  # bytes of the next file, then none until `goes_on`
    goes_on: threading.Event = field(default_factory=threading.Event)
    spoiled: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    ranges: bool = True
    names_only: bool = False  # a mirror that lists no sizes
    token_leaked: bool = False  # to the host that keeps the large files
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range

    def fetched(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def etag_of(content: bytes, path: str) -> str:
    if path.endswith((".safetensors", ".bin", ".gguf")):  # what the hub keeps in its large storage
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def small_hub(models: dict[str, dict[str, bytes]]) -> Iterator[SmallHub]:
    hub = SmallHub(models)

    class Handler(_Answer):
        pass

    Handler.hub = hub
    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.goes_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the tests."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Answer(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        listed = re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/revision/(.+)|/(refs))?", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        large = re.fullmatch(r"/cdn/((?:datasets/)?[^/]+/[^/]+)/(.+)", path)
        if self.hub.failures:
            self._send(self.hub.failures.pop(0), b"", {"Retry-After": "0"})
        elif path in ("/api/models", "/api/datasets"):
            names = [name.partition("datasets/") for name in self.hub.models]
            found = [last or first for first, prefix, last in names if bool(prefix) == path.endswith("datasets")]
            self._json([{"id": name, "modelId": name} for name in found])
        elif listed:
            self._list(listed[1], listed[2] or "main", refs=bool(listed[3]))
        elif large:
            self.hub.token_leaked |= "Authorization" in self.headers
            self._content(large[2], self.hub.models[large[1]][large[2]], {})
        elif file:
            self._file(file[1], file[2], file[3])
        else:
            self._send(404, b"", {})

    def _refused(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.models:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            status = 403 if "Authorization" in self.headers else 401
            self._send(status, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {repo} is restricted"})
        elif revision not in ("main", "v1.0", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            return False
        return True

    def _list(self, repo: str, revision: str, *, refs: bool) -> None:
        if self._refused(repo, revision):
            return
        if refs:
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            tag = {"name": "v1.0", "ref": "refs/tags/v1.0", "targetCommit": COMMIT}
            self._json({"branches": [branch], "converts": [], "tags": [tag]})
            return
        siblings = []
        for path, content in self.hub.models[repo].items():
            one: dict[str, object] = {"rfilename": path}
            etag = etag_of(content, path)
            if not self.hub.names_only:
                one |= {"size": len(content), "blobId": etag[:40]}
            if len(etag) == 64 and not self.hub.names_only:
                one["lfs"] = {"sha256": etag, "size": len(content), "pointerSize": 134}
            siblings.append(one)
        self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

    def _file(self, repo: str, revision: str, path: str) -> None:
        if self._refused(repo, revision):
            return
        content = self.hub.models[repo][path]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag_of(content, path)}"'}
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if len(headers["ETag"]) > 64:  # as the real one does with large files: another host has them
            other_host = self.hub.url.replace("127.0.0.1", "localhost")
            self._send(302, b"", headers | {"Location": f"{other_host}/cdn/{repo}/{path}"})
        else:
            self._content(path, content, headers)

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.hub.ranges else 0
        if path in self.hub.spoiled:
            content = bytes(byte ^ 1 for byte in content)
        self._send(206 if start else 200, content[start:], headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after
        stall = self.hub.stall_after
        if stall is not None and status in (200, 206) and stall < len(body):
            self.hub.stall_after = None
            self.wfile.write(body[:stall])
            self.wfile.flush()
            self.hub.goes_on.wait(60)
            self.close_connection = True
            return
        if cut is not None and status in (200, 206) and cut < len(body):
            self.hub.cut_after = None
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)
