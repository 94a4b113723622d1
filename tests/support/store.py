"""A real S3 server for tests: started once, with a fresh bucket for each test, and gone when the tests are."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchyard.host.processes import end_child
from launchyard.launcher.sandbox.s3 import weed

KEYS = weed.Keys("AKIALAUNCHYARDTESTS0", "tests/only+secret+that+must+never+be+printed")
FIRST_BUCKET = "launchyard"


class S3Server:
    """The server: it can be killed and started again on the same port and data, as a test likes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys, self.ports = folder, KEYS, weed.draw_ports()
        self.endpoint = weed.endpoint_of(self.ports)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self.ports["s3"]

    def start(self) -> None:
        """Up, and ready for a signed put."""
        if self._process is None:
            self._process = weed.start(
                self.folder, keys=self.keys, ports=self.ports, bucket=FIRST_BUCKET, tied=True, memory="512MiB"
            )
            weed.wait_ready(self._process, self.folder, keys=self.keys, ports=self.ports, bucket=FIRST_BUCKET)

    def kill(self) -> None:
        """Gone at once, like a machine without power; what was answered for is on disk."""
        if self._process is not None:
            end_child(self._process)
            self._process = None

    def freeze(self) -> None:
        """It accepts connections and answers nothing, until `thaw`."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def client(self, endpoint: str | None = None) -> Any:
        """A plain client that tries once, straight to the server unless `endpoint` says otherwise; close it."""
        return weed.client(endpoint or self.endpoint, self.keys)


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket. `environment` is what a process needs to reach it by the usual AWS variables."""

    server: S3Server
    name: str
    endpoint: str  # the server's; a proxy's after `through`

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def access_key(self) -> str:
        return self.server.keys.access_key

    @property
    def secret_key(self) -> str:
        return self.server.keys.secret_key

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": weed.REGION,
            "AWS_DEFAULT_REGION": weed.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def through(self, endpoint: str) -> Bucket:
        """The same bucket, reached by another endpoint, such as a fault proxy's."""
        return Bucket(self.server, self.name, endpoint)

    # -- straight to the server, past any proxy and past the code under test --
    def objects(self, prefix: str = "") -> list[str]:
        """Every object's key, sorted."""
        client = self.server.client()
        try:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))
        finally:
            client.close()

    def uploads(self) -> list[str]:
        """Keys of the multipart uploads that are open."""
        client = self.server.client()
        try:
            return sorted(entry["Key"] for entry in client.list_multipart_uploads(Bucket=self.name).get("Uploads", []))
        finally:
            client.close()

    def get(self, key: str) -> bytes:
        client = self.server.client()
        try:
            body = client.get_object(Bucket=self.name, Key=key)["Body"]
            with body:
                return bytes(body.read())
        finally:
            client.close()

    def put(self, key: str, raw: bytes) -> None:
        client = self.server.client()
        try:
            client.put_object(Bucket=self.name, Key=key, Body=raw)
        finally:
            client.close()


def running_server(folder: Path) -> Iterator[S3Server]:
    """The body of the session fixture."""
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        weed.clear_sockets(server.ports)


def remove_bucket(bucket: Bucket) -> None:
    """With all that is in it: a server has one volume a GiB of free disk, and each bucket takes one."""
    bucket.server.start()
    client = bucket.server.client()
    try:
        client.delete_bucket(Bucket=bucket.name)
    finally:
        client.close()


def make_bucket(server: S3Server, name: str) -> Bucket:
    server.start()
    client = server.client()
    try:
        client.create_bucket(Bucket=name)
    finally:
        client.close()
    return Bucket(server, name, server.endpoint)
