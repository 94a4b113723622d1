"""The S3 server that other tests stand on: real keys, real rules, gone with the process that started it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.sandbox.s3 import weed
from tests.support.store import Bucket

pytestmark = pytest.mark.s3


def test_what_is_put_is_there_after_a_kill(s3: Bucket) -> None:
    s3.put("a/b", b"x" * 5_000_000)
    s3.server.kill()
    s3.server.start()
    assert s3.get("a/b") == b"x" * 5_000_000
    assert s3.objects() == ["a/b"]


@pytest.mark.parametrize("keys", [weed.Keys("AKIASOMEBODYELSE0000", "x" * 40), weed.Keys("AKIALAUNCHYARDTESTS0", "no")])
def test_wrong_keys_are_refused(s3: Bucket, keys: weed.Keys) -> None:
    from botocore.exceptions import ClientError

    client = weed.client(s3.endpoint, keys)
    try:
        with pytest.raises(ClientError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
            client.put_object(Bucket=s3.name, Key="k", Body=b"")
    finally:
        client.close()


def test_a_bucket_nobody_made_is_not_there(s3: Bucket) -> None:
    from botocore.exceptions import ClientError

    client = s3.server.client()
    try:
        with pytest.raises(ClientError, match="NoSuchBucket"):
            client.put_object(Bucket="nobody-made-this", Key="k", Body=b"")
    finally:
        client.close()


def test_it_dies_with_whoever_started_it(tmp_path: Path) -> None:
    code = """
import json, os, signal, sys
from pathlib import Path
from tests.support.store import S3Server
server = S3Server(Path(sys.argv[1]))
server.start()
print(json.dumps([server._process.pid, server.ports]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    pid, ports = json.loads(done.stdout)
    try:
        assert wait_until(lambda: started_at(pid) is None, seconds=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        weed.clear_sockets(ports)
