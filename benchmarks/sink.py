"""An S3 server whose parts of uploads cost nothing: it forgets them. All else is passed on to a real one, if there is.

    python benchmarks/sink.py PORT [UPSTREAM_PORT] [--certificate FILE]

What a save costs the machine that saves shows only where the server's own work is done elsewhere. The client speaks to
this as to any server: it signs, hashes, frames and sends every byte. With a certificate, and key.pem beside it, it
speaks TLS. Without another server, what is read is zeros.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import socket
import ssl
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ZEROS = bytes(1 << 20)
KEPT = {"content-type", "etag", "last-modified", "content-range", "x-amz-request-id"}


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rbufsize = 0  # a body must still be in the socket when it is forgotten
    upstream = 0
    sizes: ClassVar[Counter[str]] = Counter()  # of the objects whose parts are forgotten

    def handle_any(self) -> None:
        place, query = urlsplit(self.path).path, urlsplit(self.path).query
        _, bucket, key = place.split("/", 2) if place.count("/") > 1 else ("", place.strip("/"), "")
        named = f"<Bucket>{bucket}</Bucket><Key>{key}</Key>"
        if self.command == "POST" and re.search(r"(^|&)uploads\b", query):
            self.take()
            self.answer(f"<InitiateMultipartUploadResult {NAMESPACE}>{named}<UploadId>1</UploadId>", "Initiate")
        elif self.command == "PUT" and "partNumber=" in query:
            self.forget()
            self.sizes[place] += self.length
            self.answer("")
        elif self.command == "HEAD" and place in self.sizes:
            self.answer("", size=self.sizes[place])
        elif self.command == "POST" and "uploadId=" in query:
            self.take()
            self.answer(f'<CompleteMultipartUploadResult {NAMESPACE}>{named}<ETag>"0"</ETag>', "Complete")
        elif self.upstream:
            self.pass_on()
        else:
            self.give_zeros()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))

    def take(self) -> bytes:
        raw = b""
        while len(raw) < self.length:
            more = self.rfile.read(self.length - len(raw))
            if not more:
                raise ConnectionError("cut off in a body")
            raw += more
        return raw

    def forget(self) -> None:
        """The kernel drops the bytes where it can; nothing copies them."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            self.drop(self.length)
            return
        while size := int(self.rfile.readline(), 16):
            self.drop(size)
            self.rfile.readline()
        self.rfile.readline()

    def drop(self, left: int) -> None:
        plain, room = not isinstance(self.connection, ssl.SSLSocket), bytearray(1 << 20)
        while left:
            some = memoryview(room)[: min(left, len(room))]
            dropped = self.connection.recv_into(some, 0, socket.MSG_TRUNC) if plain else self.rfile.readinto(some)
            if not dropped:
                raise ConnectionError("cut off in a body")
            left -= dropped

    def give_zeros(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-0").removeprefix("bytes=").partition("-")
        left = int(last) - int(first) + 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{1 << 40}")
        self.send_header("Content-Length", str(left))
        self.end_headers()
        while left:
            left -= self.connection.send(memoryview(ZEROS)[:left])

    def answer(self, body: str, word: str = "", *, size: int = 0) -> None:
        raw = f'<?xml version="1.0"?>{body}</{word}MultipartUploadResult>'.encode() if body else b""
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", str(size or len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def pass_on(self) -> None:
        there = http.client.HTTPConnection("127.0.0.1", self.upstream)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    there.putheader(name, value)
            there.endheaders(self.take())
            got = there.getresponse()
            raw = got.read()
        finally:
            there.close()
        self.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() in KEPT or name.lower().startswith("x-amz-meta"):
                self.send_header(name, value)
        size = got.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(raw))
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class SecureSink(Sink):
    rbufsize = 1 << 20  # nothing is dropped by the kernel

    def setup(self) -> None:
        self.request = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        super().setup()

    def handle(self) -> None:
        with contextlib.suppress(ssl.SSLEOFError):  # somebody who only looked whether it listens
            super().handle()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("upstream_port", type=int, nargs="?", default=0)
    parser.add_argument("--certificate")
    options = parser.parse_args()
    Sink.upstream = options.upstream_port
    if options.certificate:
        context.load_cert_chain(options.certificate, Path(options.certificate).with_name("key.pem"))
    server = ThreadingHTTPServer(("127.0.0.1", options.port), SecureSink if options.certificate else Sink)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
