"""A proxy between an S3 client and its server that a test makes unreliable: errors, cuts, stalls, lies, and hooks.

    with FaultProxy(bucket.server.port) as proxy:                    # or the fixture `proxy`, for the fixture `s3`
        there = bucket.through(proxy.endpoint)                       # same keys, same bucket
        proxy.fault(Answer(503), where(method="PUT"), times=3)       # the next three, then the server again
        proxy.fault(Reset(down=0.5), where(key=r"\\.bin$"))          # until its rule's `.off()`
        proxy.on(where(part=2), "mid-body", lambda request: os.kill(pid, signal.SIGKILL))
        proxy.refuse(); proxy.accept()                               # the server is gone, and back
        proxy.requests(where(method="GET"))                          # what was asked, for assertions

Bytes and the Host header pass as the client signed them. Threads of this process; knows no S3 beyond its URLs.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from launchyard.host.ports import free_port
from tests.support.faults import (
    Answer,
    Fault,
    Flip,
    Listed,
    Match,
    Request,
    Reset,
    Slow,
    Stall,
    Truncate,
    When,
    error_of,
    listing_of,
)

PIECE = 64 * 1024


@dataclass(eq=False)
class Rule:
    """A fault or a hook in force. `hits`: how many requests it was applied to."""

    match: Match
    fault: Fault | None
    action: Callable[[Request], Any] | None
    when: When
    left: int | None
    skip: int
    hits: int = 0

    def off(self) -> None:
        self.left = 0


class _Cut(Exception):
    """The connection to the client ends here. `reset`: without the courtesy of a FIN."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


# -- the proxy -------------------------------------------------------------------------------------------------------
class FaultProxy:
    """Listens on a loopback port; a context manager."""

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = ("127.0.0.1", upstream_port)
        self._tls = tls
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._log: list[Request] = []
        self._numbers = itertools.count()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listings: list[Listed] | None = None
        self._over = threading.Event()
        self._listener: socket.socket | None = None
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.refuse()
        for thread in self._threads:
            thread.join(10)

    # -- what a test says --
    def fault(self, fault: Fault, match: Match = lambda _: True, *, times: int | None = None, skip: int = 0) -> Rule:
        """Requests that match suffer this, after the first `skip` of them, `times` times or until it is off."""
        when = fault.when if isinstance(fault, Stall) else "before"
        return self._add(Rule(match, fault, None, when, times, skip))

    def on(
        self, match: Match, when: When, action: Callable[[Request], Any], *, times: int | None = 1, skip: int = 0
    ) -> Rule:
        """Call `action` when a request has come, when half its body has passed, or when the server has answered.

        Nothing of that request moves on while the action runs; "after" is before the client hears of the answer.
        """
        return self._add(Rule(match, None, action, when, times, skip))

    def clear(self) -> None:
        """No faults, no hooks, true listings."""
        with self._lock:
            self._rules.clear()
            self._listings = None

    def refuse(self) -> None:
        """The server is gone: open connections are reset, new ones refused."""
        with self._lock:
            listener, self._listener = self._listener, None
            gone = [*self._open]
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            listener.close()
        for sock in gone:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Listen (again), always on the same port."""
        if self._listener is not None:
            return
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._listener = listener
        self._run(self._accept, listener)

    def lag(self, objects: list[Listed] | None) -> None:
        """Listings show these objects (see `snapshot`) from now on, whatever there is; None: the truth again."""
        with self._lock:
            self._listings = objects

    def requests(self, match: Match = lambda _: True) -> list[Request]:
        """What was asked so far, in order, also what has not been answered."""
        with self._lock:
            return [request for request in self._log if match(request)]

    @property
    def connections(self) -> int:
        """How many clients there are now."""
        with self._lock:
            return len(self._open)

    # -- inside --
    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule

    def _take(self, request: Request) -> list[Rule]:
        """The rules that this request falls under; each is counted."""
        taken = []
        with self._lock:
            for rule in self._rules:
                if rule.left == 0 or not rule.match(request):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                rule.left = None if rule.left is None else rule.left - 1
                rule.hits += 1
                taken.append(rule)
        return taken

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, name="faultproxy", daemon=True)
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, request after request."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            try:
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:  # the client does not trust it
                client.close()
                return
        with self._lock:
            self._open.add(client)
            gone = self._listener is None
        try:
            if gone:
                return
            with contextlib.suppress(OSError, EOFError):
                self._converse(client)
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _converse(self, client: socket.socket) -> None:
        with client.makefile("rb") as reader, contextlib.ExitStack() as stack:
            while not self._over.is_set():
                head = _read_head(reader)
                if head is None:
                    return
                request = Request(next(self._numbers), *head[0].split(" ")[:2], _headers(head))
                with self._lock:
                    self._log.append(request)
                try:
                    _Exchange(self, request, head, client, reader, self._take(request)).run(stack)
                except _Cut as cut:
                    if cut.reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    def connect(self) -> socket.socket:
        upstream = socket.create_connection(self._upstream, timeout=60)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream

    def pause(self, seconds: float) -> None:
        self._over.wait(seconds)

    @property
    def listings(self) -> list[Listed] | None:
        with self._lock:
            return self._listings


class _Exchange:
    """One request and its answer, with what its rules make of them."""

    def __init__(
        self,
        proxy: FaultProxy,
        request: Request,
        head: list[str],
        client: socket.socket,
        reader: Any,
        rules: list[Rule],
    ) -> None:
        self._proxy, self._request, self._head = proxy, request, head
        self._client, self._reader, self._rules = client, reader, rules
        self._faults = {type(rule.fault): rule.fault for rule in rules if rule.fault is not None}
        request.faults += [type(rule.fault).__name__ for rule in rules if rule.fault is not None]
        self._halfway = False

    def run(self, stack: contextlib.ExitStack) -> None:
        request = self._request
        self._hook("before")
        answer = self._faults.get(Answer)
        stale = self._proxy.listings if request.is_list else None
        if (isinstance(answer, Answer) and not answer.done) or stale is not None:
            for _ in self._body_up():
                pass
            self._say(
                *(error_of(answer, request) if isinstance(answer, Answer) else (200, listing_of(stale or [], request)))
            )
            return
        try:
            upstream = self._proxy.connect()
        except OSError as error:
            raise _Cut(reset=True) from error
        with upstream, upstream.makefile("rb") as server:
            self._send_up(upstream)
            head = _read_head(server)
            if head is None:
                raise _Cut(reset=True)
            self._hook("after")
            if isinstance(answer, Answer):
                self._say(*error_of(answer, request))
            else:
                request.status = int(head[0].split(" ")[1])
                self._send_down(head, server)

    # -- up --
    def _send_up(self, upstream: socket.socket) -> None:
        lines = [line for line in self._head if not line.lower().startswith(("expect:", "connection:"))]
        upstream.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
        reset, slow = self._faults.get(Reset), self._faults.get(Slow)
        total = int(self._request.headers.get("content-length", "0"))
        cut = int(total * reset.up) if isinstance(reset, Reset) and reset.up is not None else None
        rate = slow.up if isinstance(slow, Slow) else None
        if cut == 0:
            raise _Cut(reset=True)
        for piece in _halved(self._body_up(), total):
            allowed = piece if cut is None else piece[: max(0, cut - self._request.bytes_up)]
            self._pass(upstream, allowed, rate)
            self._request.bytes_up += len(allowed)
            if cut is not None and self._request.bytes_up >= cut:
                raise _Cut(reset=True)
            if self._request.bytes_up * 2 >= total > 0:
                self._mid_body()

    def _body_up(self) -> Iterator[bytes]:
        headers = self._request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        yield from _body(self._reader, headers, none=True)

    # -- down --
    def _send_down(self, head: list[str], server: Any) -> None:
        headers, request = _headers(head), self._request
        total = int(headers.get("content-length", "0")) if request.method != "HEAD" else 0
        reset, truncate = self._faults.get(Reset), self._faults.get(Truncate)
        flip, slow = self._faults.get(Flip), self._faults.get(Slow)
        keep, abrupt = None, False
        if isinstance(reset, Reset) and reset.down is not None:
            keep, abrupt = int(total * reset.down), True
        elif isinstance(truncate, Truncate) and total:
            keep = int(total * truncate.keep)
            if truncate.lie:
                head = [re.sub(r"(?i)^(content-length:).*", rf"\1 {keep}", line) for line in head]
        flipped = min(int(total * flip.at), total - 1) if isinstance(flip, Flip) and total else None
        lines = [line for line in head if not line.lower().startswith("connection:")]
        if isinstance(truncate, Truncate) and truncate.lie:
            lines.append("Connection: close")  # else the client, content, may ask again where nobody listens any more
        self._client.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if request.method == "HEAD" or request.status in (204, 304):
            return
        for piece in _halved(_body(server, headers, none=False), total):
            at = request.bytes_down
            if flipped is not None and at <= flipped < at + len(piece):
                piece = piece[: flipped - at] + bytes([piece[flipped - at] ^ 1]) + piece[flipped - at + 1 :]
            allowed = piece if keep is None else piece[: max(0, keep - at)]
            self._pass(self._client, allowed, slow.down if isinstance(slow, Slow) else None)
            request.bytes_down += len(allowed)
            if keep is not None and request.bytes_down >= keep:
                raise _Cut(reset=abrupt)
            if request.bytes_down * 2 >= total > 0 and not request.bytes_up:
                self._mid_body()
        if keep is not None or not {"content-length", "transfer-encoding"} & set(headers):
            raise _Cut(reset=abrupt)

    # -- both --
    def _pass(self, to: socket.socket, raw: bytes, rate: float | None) -> None:
        if rate is None:
            to.sendall(raw)
            return
        step = max(1, int(rate / 20))
        for start in range(0, len(raw), step):
            to.sendall(raw[start : start + step])
            self._proxy.pause(len(raw[start : start + step]) / rate)

    def _mid_body(self) -> None:
        if not self._halfway:
            self._halfway = True
            self._hook("mid-body")

    def _hook(self, when: When) -> None:
        for rule in self._rules:
            if rule.when != when:
                continue
            if isinstance(rule.fault, Stall):
                self._proxy.pause(rule.fault.seconds)
            if rule.action is not None:
                rule.action(self._request)

    def _say(self, status: int, body: bytes) -> None:
        """An answer of our own."""
        self._request.status, self._request.bytes_down = status, len(body)
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        head += f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT\r\nx-amz-request-id: proxy\r\n\r\n"
        self._client.sendall(head.encode() + (b"" if self._request.method == "HEAD" else body))


# -- HTTP, as little as it takes -------------------------------------------------------------------------------------
def _read_head(reader: Any) -> list[str] | None:
    """First line and headers; None at the end of the stream."""
    lines: list[str] = []
    while True:
        line = reader.readline(PIECE).decode("latin-1")
        if not line:
            return None
        line = line.rstrip("\r\n")
        if not line and lines:
            return lines
        if line:
            lines.append(line)


def _headers(head: list[str]) -> dict[str, str]:
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}


def _body(reader: Any, headers: dict[str, str], *, none: bool) -> Iterator[bytes]:
    """The bytes of a body as they lie on the wire. `none`: without a length there is no body, else it goes to the end.

    EOFError if it ends early.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        yield from _chunks(reader)
        return
    if "content-length" not in headers and not none:
        while piece := reader.read1(PIECE):
            yield piece
        return
    left = int(headers.get("content-length", "0"))
    while left:
        piece = reader.read1(min(PIECE, left))
        if not piece:
            raise EOFError
        left -= len(piece)
        yield piece


def _halved(pieces: Iterator[bytes], total: int) -> Iterator[bytes]:
    """The same bytes, with an end of a piece in their middle."""
    passed, half = 0, (total + 1) // 2
    for piece in pieces:
        if 0 < half - passed < len(piece):
            yield piece[: half - passed]
            piece, passed = piece[half - passed :], half
        passed += len(piece)
        yield piece


def _chunks(reader: Any) -> Iterator[bytes]:
    while True:
        line = reader.readline(PIECE)
        if not line:
            raise EOFError
        size = int(line.split(b";")[0], 16)
        yield line + (reader.read(size + 2) if size else b"")
        if not size:
            while (line := reader.readline(PIECE)) not in (b"\r\n", b"\n", b""):
                yield line
            yield b"\r\n"
            return
