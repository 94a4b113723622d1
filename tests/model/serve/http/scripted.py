"""A server that speaks the routes of a chat by scripts: what no model can be made to say, when it cannot be made to."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

PAGE = "launchyard.model.serve.http"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
            policy = f"default-src 'self'; {own}; img-src 'self' data:; base-uri 'none'"
            page = files(PAGE).joinpath("page.html").read_text().replace("{{nonce}}", nonce)
            self.give(page.encode(), headers={"Content-Type": "text/html", "Content-Security-Policy": policy})
        elif self._may():
            self.json({"object": "list", "data": [{"id": self.server.name, "object": "model", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._may():
            self.server.asked.append(body)
            self.server.script(self)

    def _may(self) -> bool:
        given = self.headers.get("Authorization", "")
        self.server.keys.append(given)
        if self.server.key and given != f"Bearer {self.server.key}":
            self.error(401, "a key is needed: Authorization: Bearer KEY")
            return False
        return True

    def give(self, body: bytes, *, status: int = 200, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, content: object, *, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.give(json.dumps(content).encode(), status=status, headers={"Content-Type": "application/json", **named})

    def error(self, status: int, message: str, **headers: str) -> None:
        self.json(
            {"error": {"message": message, "type": "some", "param": None, "code": None}}, status=status, **headers
        )

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def piece(self, text: str) -> None:
        self.raw(event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}))


class Scripted(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.name = "stand-in-7b"
        self.script: Callable[[Handler], None] = says("Hello")
        self.key = ""
        self.asked: list[dict[str, Any]] = []  # bodies of chats
        self.paths: list[str] = []
        self.keys: list[str] = []  # of each request for which one counts
        self.gone = threading.Event()  # a client left before its answer was complete


def event(content: object) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def ending(n_tokens: int, reason: str = "stop") -> bytes:
    usage = {"prompt_tokens": 20, "completion_tokens": n_tokens, "total_tokens": 20 + n_tokens}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return event(last) + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def says(*pieces: str, reason: str = "stop", pause: float = 0.0) -> Callable[[Handler], None]:
    def script(handler: Handler) -> None:
        handler.begin()
        handler.raw(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
        for text in pieces:
            handler.piece(text)
            time.sleep(pause)
        handler.raw(ending(len(pieces), reason))

    return script


@dataclass
class Held:
    """Says its pieces as they are let go, one by one; then goes on for ever if `endless`, until the client leaves."""

    pieces: Sequence[str] = ()
    endless: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def let(self, n: int = 1) -> None:
        self._go.release(n)

    def __call__(self, handler: Handler) -> None:
        handler.begin()
        try:
            for text in self.pieces:
                assert self._go.acquire(timeout=20), "nobody let this piece go"
                handler.piece(text)
            while self.endless:
                handler.piece("word ")
                time.sleep(0.01)
            handler.raw(ending(len(self.pieces)))
        except OSError:
            handler.server.gone.set()


@contextmanager
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
